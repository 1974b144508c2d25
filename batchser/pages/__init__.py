"""What people look at: charts, templates, and the report. ``dashboard`` shows the same pieces live."""
