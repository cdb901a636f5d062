"""From records to tables, figures and one page a recipe."""
