"""What two or more scripts share: the parts that are not the lesson.

Five rooms, report, techniques, training, data and setup: each imports only from itself and from those
after it.
"""
