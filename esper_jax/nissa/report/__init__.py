"""The report of a run: one HTML page that needs no other file.

record   config.json, the logs and result.json -> a `Run`
growth   its events -> the life of each seed, and every decision
curves, timeline, waterfall, network   a `Run` -> SVG
single, comparison   these, with words and tables -> the body of a page
page, writing   the page around it -> a file, replaced as a whole
"""
