"""What a benchmark run says: a page to look at, and tables in Markdown.

Owns: reading pytest-benchmark's JSON, and arranging, drawing and wording what is in it. Refuses:
measuring, and anything that is not in the standard library.

    results     what was measured, by workload and peer
    units       numbers as people read them
    markup      HTML and SVG elements, escaped
    charts      bars, ranges and lines as SVG
    headlines   which figures stand for a run, and their Markdown
    page        the HTML page
    history     the headlines of earlier runs
    comparison  two commits, side by side (python -m bench.compare)

The modules import each other relatively: the package is bench.report when it is run in the
checkout, and report to the tests and the type checker, which know the files of bench/ by their own
names.
"""
