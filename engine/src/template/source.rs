//! What happens to a template's source before it is parsed.

/// Prepares `source` for the parser as Python's jinja2 and the hub's library do: every line ending
/// becomes `\n`, one newline at the end is dropped (by the parser's own setting), and
/// `{% generation %}` and `{% endgeneration %}`, which only matter when training, become a
/// block without effect.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        let (text, tail) = rest.split_at(at);
        out.push_str(text);
        let end = match tail.as_bytes().get(1) {
            Some(b'#') => comment_len(tail),
            Some(b'{') => code_len(tail, "}}"),
            Some(b'%') => block(tail, &mut out),
            _ => 1,
        };
        let (copied, after) = tail.split_at(end);
        if tail.as_bytes().get(1) != Some(&b'%') {
            out.push_str(copied);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Length of the comment that `tail` starts with; an unclosed one takes the rest.
fn comment_len(tail: &str) -> usize {
    tail.get(2..).and_then(|body| body.find("#}")).map_or(tail.len(), |at| at + 4)
}

/// Length of the expression or tag that `tail` starts with, up to and including `close`.
///
/// A `close` inside a string, or while a bracket is open (`{{ {"a": {}} }}`), does not end it.
fn code_len(tail: &str, close: &str) -> usize {
    let bytes = tail.as_bytes();
    let mut at = 2;
    let mut open = 0usize;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                continue;
            }
            _ if open == 0 && bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            b'{' | b'[' | b'(' => open += 1,
            b'}' | b']' | b')' => open = open.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    tail.len()
}

/// Copies the tag that `tail` starts with to `out`, renamed where it is a generation tag, and a
/// raw block as a whole. Returns how much of `tail` was used.
fn block(tail: &str, out: &mut String) -> usize {
    let len = code_len(tail, "%}");
    let tag = &tail[..len];
    let body = tag.trim_start_matches("{%").trim_start_matches(['-', '+']);
    let body = body.trim_end_matches("%}").trim_end_matches(['-', '+']).trim();
    match body {
        "raw" => {
            let len = raw_len(tail, len);
            out.push_str(&tail[..len]);
            return len;
        }
        "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
        "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
        _ => out.push_str(tag),
    }
    len
}

/// Length of the raw block whose opening tag has length `open`.
fn raw_len(tail: &str, open: usize) -> usize {
    let mut at = open;
    while let Some(found) = tail[at..].find("{%") {
        let start = at + found;
        let body = tail[start + 2..].trim_start_matches(['-', '+']).trim_start();
        if body.starts_with("endraw") {
            return tail[start..].find("%}").map_or(tail.len(), |end| start + end + 2);
        }
        at = start + 2;
    }
    tail.len()
}

#[cfg(test)]
mod tests {
    use super::prepare;

    #[test]
    fn generation_tags_become_a_block_without_effect() {
        assert_eq!(
            prepare("a{%- generation -%}b{% endgeneration +%}c"),
            "a{%- with -%}b{% endwith +%}c"
        );
    }

    #[test]
    fn strings_comments_and_raw_blocks_are_left_alone() {
        for same in [
            "{{ '{% generation %}' }}",
            "{{ \"\\\"{% generation %}\" ~ {'a': {}} }}{{ '{% endgeneration %}' }}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{%- endraw %}",
            "{% set x = '{% generation %}' %}",
            "{{ unclosed {% generation %}",
            "{% raw %}{% generation %}",
            "{",
            "{#",
            "{{ '\\",
        ] {
            assert_eq!(prepare(same), same);
        }
    }

    #[test]
    fn line_endings_become_newlines() {
        assert_eq!(prepare("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
