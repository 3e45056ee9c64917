"""From a template and plain content to a page."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

__all__ = ["render_page"]


def render_page(package: str, template: str, **content: object) -> str:
    """Return a whole page.

    Args:
        package: Import name of the package whose folder `templates` has the template.
        template: Its file name; it extends `base.html`.
        content: What it shows. All text is escaped.
    """
    environment = Environment(
        autoescape=True,
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("keylock.reports")]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(content)
