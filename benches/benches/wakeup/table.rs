//! Figures in rows, for a screen or a document.

use std::fmt;

/// A table whose first column is words and whose others are figures.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    markdown: bool,
}

impl Table {
    pub(crate) fn new(head: &[&str], markdown: bool) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()], markdown }
    }

    pub(crate) fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max();
        for (i, row) in self.rows.iter().enumerate() {
            if self.markdown {
                writeln!(f, "| {} |", row.join(" | "))?;
                if i == 0 {
                    writeln!(f, "|{}", "---|".repeat(row.len()))?;
                }
                continue;
            }
            for (column, cell) in row.iter().enumerate() {
                let width = width(column).unwrap_or(0);
                if column == 0 { write!(f, "{cell:width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A time in microseconds, with three digits.
pub(crate) fn us(value: f64) -> String {
    match value {
        v if v < 9.95 => format!("{v:.2}"),
        v if v < 99.5 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A share, in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
