"""How fast the service is, beside what one would do by hand with `rclone` and a checksum, in the same run."""
