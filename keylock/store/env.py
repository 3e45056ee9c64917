"""What Alembic runs to reach a store: it is given a connection whose transaction the caller opened and will close."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
