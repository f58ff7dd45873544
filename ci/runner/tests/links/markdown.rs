// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The links and headings of a document.

use std::collections::BTreeSet;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::source::is_item;

/// A link or picture of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// As in the document.
    pub(crate) target: String,
    /// The item that is the text of the link, if the text is one in code format.
    pub(crate) item: Option<String>,
    /// Number of the line, from 1.
    pub(crate) line: usize,
}

/// A fenced block `LANGUAGE from=PATH`, which quotes a file of the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quotation {
    /// Path in the checkout.
    pub(crate) path: String,
    /// The lines.
    pub(crate) text: String,
}

/// A document.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Its quotations, in order.
    pub(crate) quotations: Vec<Quotation>,
    /// Its links and pictures, in order.
    pub(crate) links: Vec<Link>,
    /// The anchors of its headings.
    pub(crate) anchors: BTreeSet<String>,
}

impl Page {
    /// Reads a document.
    pub(crate) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut heading: Option<String> = None;
        // The texts in code format, and whether there is other text, of the current link.
        let mut codes: Vec<String> = Vec::new();
        let mut other = false;
        let mut quotes = false;
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap_or_default());
                    page.add_anchor(slug);
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(Link {
                        target: dest_url.into_string(),
                        item: None,
                        line: 1 + text[..range.start].matches('\n').count(),
                    });
                    codes.clear();
                    other = false;
                }
                Event::End(TagEnd::Link) => {
                    if let ([code], false, Some(link)) = (&codes[..], other, page.links.last_mut())
                    {
                        link.item = is_item(code).then(|| code.clone());
                    }
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    codes.push(code.into_string());
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    if let Some((_, path)) = info.split_once(" from=") {
                        quotes = true;
                        page.quotations.push(Quotation {
                            path: path.to_owned(),
                            text: String::new(),
                        });
                    }
                }
                Event::End(TagEnd::CodeBlock) => quotes = false,
                Event::Text(words) if quotes => {
                    if let Some(quotation) = page.quotations.last_mut() {
                        quotation.text.push_str(&words);
                    }
                }
                Event::Text(words) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&words);
                    }
                    other = true;
                }
                _ => {}
            }
        }
        page
    }

    /// Adds the anchor of a heading; the second heading with the same words gets a number.
    fn add_anchor(&mut self, slug: String) {
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone())
            .chain(numbered)
            .find(|anchor| !self.anchors.contains(anchor));
        self.anchors.extend(free);
    }
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn slug(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_become_anchors() {
        let page = Page::parse("# A `b_c`: d, e-f?\n\n## Same\n\n## Same\n\ntext # no\n");
        let anchors: Vec<_> = page.anchors.iter().map(String::as_str).collect();
        assert_eq!(anchors, ["a-b_c-d-e-f", "same", "same-1"]);
    }

    #[test]
    fn quotations_name_their_source() {
        let page = Page::parse("```rust from=a/b.rs\nc\n\nd\n```\n\n```rust\ne\n```\n");
        let quotation = Quotation {
            path: "a/b.rs".into(),
            text: "c\n\nd\n".into(),
        };
        assert_eq!(page.quotations, [quotation]);
    }

    #[test]
    fn links_are_found_with_their_lines() {
        let page = Page::parse(
            "[a](b)\n\n| x |\n|---|\n| [`c::d()`](e#f) |\n\n[g]\n\n![h](i)\n\n[`no item`](j) \
             [`k` l](m)\n\n```\n[n](o)\n```\n`[p](q)`\n\n[g]: r\n",
        );
        let link = |target: &str, item: Option<&str>, line| Link {
            target: target.into(),
            item: item.map(str::to_owned),
            line,
        };
        assert_eq!(
            page.links,
            [
                link("b", None, 1),
                link("e#f", Some("c::d()"), 5),
                link("r", None, 7),
                link("i", None, 9),
                link("j", None, 11),
                link("m", None, 11),
            ]
        );
    }
}
