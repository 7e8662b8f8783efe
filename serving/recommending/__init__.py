"""An answer: what was asked for, the list, its fallbacks, pages, reasons; and the search of items."""
