"""Pages to look at: one HTML file that holds all it needs, made by jinja2 from a run's results.

Pictures are SVG by matplotlib, tables of colored cells are HTML, and one short script sorts, searches and downloads
what the page holds. A plotting library in JavaScript would be four megabytes in each file and a version to be kept
alive; this opens in any browser for as long as there are any, its text can be selected, printed and read aloud, it
works without the script, and its policy lets no other script run, whatever a model has answered.
"""
