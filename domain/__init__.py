"""What a dataset, a file, a datablock and a job are: values and rules, without I/O or clock."""
