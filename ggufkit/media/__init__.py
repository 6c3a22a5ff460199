"""Images and sound as arrays: read from files, brought to a size, and to the numbers that encoders take."""
