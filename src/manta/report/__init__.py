"""Reports that need nothing but a browser: `page` puts them together, `plots` draws their figures as inline SVG."""

from manta.report.page import Page
from manta.report.plots import heat, lines, scatter

__all__ = ["Page", "heat", "lines", "scatter"]
