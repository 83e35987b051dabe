"""Report pages: self-contained HTML files, rendered by jinja2 from the results of runs.

Plots are SVG by matplotlib, tables of colored cells are HTML, and one short script sorts, searches and downloads the
page's tables. There is no plotting library in JavaScript, which would add four megabytes to each file and a version to
maintain. The text of a page can be selected, printed and read aloud; a page works without the script, and its content
security policy blocks all other scripts, whatever a model has answered.
"""
