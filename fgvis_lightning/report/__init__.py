"""``python train.py report FOLDER``: a results folder → one static page with pictures and tables.

The modules, in the order of the data flow::

    sections    tables and figures of the commands
    gather      items, and reasons for missing ones
    overview    numbers and plots of all items
    pictures    one item → the pictures of its view
    page        all of these → HTML
    command     the command line of report

    benchmark, benchmark_page    the command benchmark and its page
"""
