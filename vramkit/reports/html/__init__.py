"""A result as one web page that works offline: Python makes the data, the page's own script draws it. No torch."""
