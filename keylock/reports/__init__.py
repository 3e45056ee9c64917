"""Reports as one HTML page that needs nothing beside itself.

A package that writes a page has a template in its folder `templates`, which extends `base.html` and shows what it is
given by the macros of `parts.html`. Everything given is plain text and escaped; pictures are embedded.
"""

from keylock.reports.charts import Chart, Line, line_chart
from keylock.reports.content import Card, Cell, Picture, Table, embed
from keylock.reports.rendering import render_page

__all__ = ["Card", "Cell", "Chart", "Line", "Picture", "Table", "embed", "line_chart", "render_page"]
