"""The commands that measure, each a module with ``main``, and their common code.

``main`` raises `InputError` for a user's mistake, for files that cannot be read, and for methods that cannot explain
the network; and `RankFailedError` if a process ended before its shard was done.
"""
