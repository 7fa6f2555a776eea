//! Columns for people.

use super::screen::{Tone, paint};
use super::words;

/// One field of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

impl Cell {
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// Rows under a header. Each column is as wide as its widest cell; the last one has no padding.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
    /// Widths that rows printed earlier had; columns never get narrower.
    widths: Vec<usize>,
}

impl Table {
    pub fn new<H: Into<String>>(header: impl IntoIterator<Item = H>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Header and rows.
    pub fn print(&mut self, color: bool) -> String {
        let header: Vec<Cell> = self.header.iter().map(|name| Cell::toned(name.clone(), Tone::Faint)).collect();
        self.rows.insert(0, header);
        self.print_rows(color)
    }

    /// The rows since the last call, below what was printed then.
    pub fn print_rows(&mut self, color: bool) -> String {
        let mut rows = std::mem::take(&mut self.rows);
        self.widths.resize(self.header.len(), 0);
        for row in &mut rows {
            // Indentation is meant; what a container printed may be anything.
            row.iter_mut().for_each(|cell| {
                let indent = cell.text.len() - cell.text.trim_start_matches(' ').len();
                cell.text = format!("{}{}", " ".repeat(indent), words::line(&cell.text));
            });
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(words::width(&cell.text));
            }
        }
        let mut text = String::new();
        for row in rows {
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
            for (index, cell) in row.iter().enumerate().take(last + 1) {
                text.push_str(&paint(color, cell.tone, &cell.text));
                if index < last {
                    let column = self.widths.get(index).copied().unwrap_or(0);
                    text.push_str(&" ".repeat(column.saturating_sub(words::width(&cell.text)) + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(["NAME", "STATE", "WHY"]);
        table.row(vec!["web".into(), Cell::toned("running", Tone::Good), "".into()]);
        table.row(vec!["a-longer-one".into(), "◐".into(), "no node fits".into()]);
        assert_eq!(
            table.print(false),
            "NAME          STATE    WHY\nweb           running\na-longer-one  ◐        no node fits\n"
        );
        table.row(vec!["x".into(), "y".into(), "z\r\n".into()]);
        assert_eq!(table.print_rows(false), "x             y        z\n");
    }

    #[test]
    fn wide_letters_do_not_shift_what_is_right_of_them() {
        let mut table = Table::new(["  NAME", "WHY"]);
        table.row(vec!["  東京".into(), "a".into()]);
        table.row(vec!["  abc".into(), "b".into()]);
        assert_eq!(table.print(false), "  NAME  WHY\n  東京  a\n  abc   b\n");
    }
}
