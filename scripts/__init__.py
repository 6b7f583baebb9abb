"""What is run by hand or by continuous integration, and is no part of the packages."""
