"""A module with a syntax error."""

exec("class (")
