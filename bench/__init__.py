"""The benchmarks of fastpool and its peers, and the report of what they measured.

`make bench` runs them. A module imports its neighbours by relative name, so that the checkout need
not stand in sys.path: what is measured is the fastpool that is installed.
"""
