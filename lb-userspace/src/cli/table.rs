//! Tables in the style of kubectl: no lines, headers in capitals, nothing truncated.

use comfy_table::{ContentArrangement, Table, TableStyle};

use super::output::Style;

/// A column of a table of `T`.
pub struct Column<T> {
    header: &'static str,
    wide: bool,
    /// The cell of a row, given the time.
    cell: fn(&T, f64) -> String,
}

impl<T> Column<T> {
    pub const fn new(header: &'static str, cell: fn(&T, f64) -> String) -> Self {
        Self { header, wide: false, cell }
    }

    /// Shown only by `-o wide`.
    pub const fn wide(header: &'static str, cell: fn(&T, f64) -> String) -> Self {
        Self { header, wide: true, cell }
    }
}

/// The table of `rows`, ending in a newline; empty if there are none.
pub fn table<T>(columns: &[Column<T>], rows: &[T], style: Style) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let shown = || columns.iter().filter(|column| style.wide || !column.wide);
    let cells = rows.iter().map(|row| shown().map(|column| (column.cell)(row, style.now)).collect());
    aligned(style.headers.then(|| shown().map(|column| column.header.to_owned()).collect()), cells)
}

/// Lines of cells, aligned in columns.
pub fn aligned(header: Option<Vec<String>>, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(header) = header {
        table.add_row(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(&str, u32)>] =
        &[Column::new("NAME", |row, _| row.0.to_owned()), Column::wide("N", |row, now| format!("{}@{now}", row.1))];
    const ROWS: &[(&str, u32)] = &[("a", 1), ("long name that is not cut off, however long it becomes", 22)];

    #[test]
    fn columns_are_aligned_without_lines_or_trailing_blanks() {
        let style = Style { wide: true, headers: true, now: 7.0 };
        let width = ROWS[1].0.len() + 3;
        let expected = format!("{:width$}N\n{:width$}1@7\n{:width$}22@7\n", "NAME", ROWS[0].0, ROWS[1].0);
        assert_eq!(table(COLUMNS, ROWS, style), expected);
        assert_eq!(table(&COLUMNS[..1], &ROWS[..1], style), "NAME\na\n");
    }

    #[test]
    fn wide_columns_and_headers_appear_only_when_asked_for() {
        let style = Style { wide: false, headers: false, now: 0.0 };
        assert_eq!(table(COLUMNS, &ROWS[..1], style), "a\n");
        assert_eq!(table(COLUMNS, &[], style), "");
    }
}
