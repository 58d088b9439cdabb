"""Pure tensor functions: scales, pyramids, quantization, filtering, schedules, counting, costs.

This floor knows torch only: no modules, no files, no processes.
"""
