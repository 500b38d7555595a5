"""The I/O shell: file descriptors, signals, the loop. What is asked stands in `protocol`, what is
done in `runtime`.
"""
