"""Pages: parts as plain HTML, CSS and JavaScript in this folder, put together by `page.assemble`."""
