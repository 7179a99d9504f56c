//! HTML in which nothing from the machine is markup.

use std::fmt::{self, Display, Write};

/// Text of a page, well-formed as far as its tags are closed where they are opened.
#[derive(Debug, Default)]
pub(super) struct Html {
    text: String,
}

impl Html {
    /// Markup, which the program wrote itself.
    pub(super) fn raw(&mut self, markup: &str) -> &mut Self {
        self.text.push_str(markup);
        self
    }

    /// Text from anywhere.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        escape(&mut self.text, &text);
        self
    }

    /// An element with nothing but text in it. `tag` may have attributes.
    pub(super) fn element(&mut self, tag: &'static str, text: impl Display) -> &mut Self {
        let name = tag.split(' ').next().unwrap_or(tag);
        self.raw("<").raw(tag).raw(">").text(text).raw("</").raw(name).raw(">")
    }

    /// A table: its heading, and rows of text. `kinds` has a class for each column: `n` for numbers.
    pub(super) fn table(&mut self, heading: &[&str], kinds: &str, rows: &[Vec<String>]) -> &mut Self {
        let class = |column: usize| if kinds.as_bytes().get(column) == Some(&b'n') { " class=\"n\"" } else { "" };
        self.raw("<div class=\"scroll\"><table><thead><tr>");
        for (column, title) in heading.iter().enumerate() {
            self.raw("<th").raw(class(column)).raw(">").text(title).raw("</th>");
        }
        self.raw("</tr></thead><tbody>");
        for row in rows {
            self.raw("<tr>");
            for (column, cell) in row.iter().enumerate() {
                self.raw("<td").raw(class(column)).raw(">").text(cell).raw("</td>");
            }
            self.raw("</tr>");
        }
        self.raw("</tbody></table></div>\n")
    }

    /// Names and values, one pair below the other.
    pub(super) fn pairs(&mut self, pairs: &[(String, String)]) -> &mut Self {
        self.raw("<dl>");
        for (name, value) in pairs {
            self.element("dt", name).element("dd", value);
        }
        self.raw("</dl>\n")
    }

    /// A list of sentences.
    pub(super) fn list(&mut self, items: impl IntoIterator<Item = impl Display>) -> &mut Self {
        self.raw("<ul>");
        items.into_iter().for_each(|item| {
            self.element("li", item);
        });
        self.raw("</ul>\n")
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// Writes `text` so that it shows as what it is, in an element or an attribute.
pub(super) fn escape(to: &mut String, text: &impl Display) {
    // Writing into a string does not fail; a `Display` that does has told what it could.
    let _ = write!(Escape(to), "{text}");
}

struct Escape<'a>(&'a mut String);

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                // Nothing that turns text around or hides it (Unicode TR9 and general category Cf), and no control codes.
                '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    self.0.push('\u{fffd}');
                }
                c if c.is_control() => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        let mut html = Html::default();
        html.element("p class=\"x\"", "<script>alert('1')</script> & \"more\"\u{202e}\u{1b}[1m");
        assert_eq!(
            html.into_text(),
            "<p class=\"x\">&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;more&quot;\u{fffd}\u{fffd}[1m</p>"
        );
        let mut html = Html::default();
        html.table(&["<a>"], "n", &[vec!["</table>".into()]]).pairs(&[("<b>".into(), "<i>".into())]).list(["<u>"]);
        let text = html.into_text();
        assert!(
            ["<a>", "<b>", "<i>", "<u>"].iter().all(|tag| !text.contains(tag)) && text.matches("</table>").count() == 1
        );
    }
}
