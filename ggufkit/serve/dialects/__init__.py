"""The languages that clients speak, a file each: what they ask becomes an `Ask`, the answers become theirs."""
