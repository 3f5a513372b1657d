"""What two or more scripts share: the parts that are not the lesson."""
