"""``python train.py report FOLDER``: a results folder → one static page for people who would rather look than read.

The data flow, and the modules in its order::

    sections    tables and figures that the commands leave
    gather      items, and why some are missing
    overview    numbers and plots of all items
    pictures    one item → what its view shows
    page        all of these → HTML
    command     the command line
"""
