"""The quickstart: a tiny model that reads and generates handwritten digits, from data to a report page."""
