"""The languages that clients speak, a file an endpoint or a family: what they ask becomes an `Ask`, answers become theirs."""
