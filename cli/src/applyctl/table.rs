//! Columns for people.

use super::screen::{Tone, cut, paint};
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

/// How a table is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub color: bool,
    /// Where there is no more room than this, the widest columns are cut: between the first, which is the name, and the
    /// last, which may go on in the next line, and no further than to 16.
    pub columns: Option<usize>,
}

/// Names of services and images are seldom longer.
const CUT_TO: usize = 16;

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
    pub fn print(&mut self, look: Look) -> String {
        let header: Vec<Cell> = self.header.iter().map(|name| Cell::toned(name.clone(), Tone::Faint)).collect();
        self.rows.insert(0, header);
        self.print_rows(look)
    }

    /// The rows since the last call, below what was printed then.
    pub fn print_rows(&mut self, look: Look) -> String {
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
        let widths = fitted(&self.widths, look.columns);
        let mut text = String::new();
        for row in rows {
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
            for (index, cell) in row.iter().enumerate().take(last + 1) {
                let column = widths.get(index).copied().unwrap_or(usize::MAX);
                let shown = cut(&cell.text, column);
                text.push_str(&paint(look.color, cell.tone, &shown));
                if index < last {
                    text.push_str(&" ".repeat(column.saturating_sub(words::width(&shown)) + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Widths that fit into so many columns, as far as they may.
fn fitted(widths: &[usize], columns: Option<usize>) -> Vec<usize> {
    let mut shown = widths.to_vec();
    let between = 2 * widths.len().saturating_sub(1);
    while columns.is_some_and(|columns| shown.iter().sum::<usize>() + between > columns) {
        let inner = widths.len().saturating_sub(2);
        let others = shown.iter_mut().skip(1).take(inner).filter(|width| **width > CUT_TO);
        match others.max() {
            Some(widest) => *widest -= 1,
            None => break,
        }
    }
    shown
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
            table.print(Look::default()),
            "NAME          STATE    WHY\nweb           running\na-longer-one  ◐        no node fits\n"
        );
        table.row(vec!["x".into(), "y".into(), "z\r\n".into()]);
        assert_eq!(table.print_rows(Look::default()), "x             y        z\n");
    }

    #[test]
    fn wide_letters_do_not_shift_what_is_right_of_them() {
        let mut table = Table::new(["  NAME", "WHY"]);
        table.row(vec!["  東京".into(), "a".into()]);
        table.row(vec!["  abc".into(), "b".into()]);
        assert_eq!(table.print(Look::default()), "  NAME  WHY\n  東京  a\n  abc   b\n");
    }

    #[test]
    fn a_narrow_terminal_cuts_what_is_widest_and_never_a_name() {
        let mut table = Table::new(["NAME", "WHY", "AGE"]);
        let name = "a-service-with-a-long-name";
        table.row(vec![name.into(), "no node fits (3): memory 8 GiB asked".into(), "7 s".into()]);
        let narrow = Look { columns: Some(60), color: false };
        assert_eq!(
            table.print(narrow),
            format!("{:26}  {:27}  AGE\n{name}  no node fits (3): memory 8…  7 s\n", "NAME", "WHY")
        );
        table.row(vec![name.into(), "no node fits (3): memory 8 GiB asked".into(), "7 s".into()]);
        let text = table.print_rows(Look { columns: Some(20), color: false });
        assert_eq!(text, format!("{name}  no node fits (3…  7 s\n"), "what is left is told");
    }
}
