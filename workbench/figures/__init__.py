"""Turn data frames into plotly figures; nothing here measures."""
