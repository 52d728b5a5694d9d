"""The browser of all tests of pages."""

from view_pages import browser as browser
