"""Building blocks of HTML pages and of tables for a terminal, and the page of `launch.inspect_data`."""
