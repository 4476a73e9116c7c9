//! One Rust source file, with everything that is not code blanked out.
//!
//! The rules look for words. A word inside a string or a comment is not a call, and a brace inside
//! a character literal opens no block, so the rules look at [`Source::code`], where those bytes
//! are spaces. Offsets and line numbers are those of the original text.

/// A source text and its masked twin of the same length.
#[derive(Debug)]
pub struct Source {
    text: String,
    code: String,
}

impl Source {
    /// Masks `text`. Never fails: what is left open at the end of the text is masked to the end.
    pub fn new(text: &str) -> Source {
        let code = Masker { bytes: text.as_bytes(), at: 0, out: Vec::with_capacity(text.len()) };
        let code = code.run();
        assert_eq!(code.len(), text.len(), "masking keeps every offset");
        Source { text: text.to_owned(), code }
    }

    /// The text as it stands in the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text with comments, strings, characters and non-ASCII bytes replaced by spaces.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The line that holds the byte `offset`, counted from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
    }

    /// Offsets in the code where `word` stands as a word of its own: neither continues an
    /// identifier to its left nor, if it ends like an identifier, runs on to its right.
    pub fn find_word(&self, word: &str) -> Vec<usize> {
        let code = self.code.as_bytes();
        let open_end = word.bytes().last().is_some_and(is_identifier);
        self.code
            .match_indices(word)
            .map(|(at, _)| at)
            .filter(|at| {
                let left = at.checked_sub(1).map(|before| code[before]);
                let right = code.get(at + word.len()).copied();
                let continues = left.is_some_and(is_identifier);
                let runs_on = open_end && right.is_some_and(is_identifier);
                !(continues || runs_on)
            })
            .collect()
    }
}

/// Whether `byte` can be part of an identifier.
pub fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The offset of the bracket that closes the one at `open`, in masked code. `None` if it is never
/// closed.
pub fn closing(code: &[u8], open: usize) -> Option<usize> {
    let (up, down) = match code[open] {
        b'{' => (b'{', b'}'),
        b'(' => (b'(', b')'),
        b'[' => (b'[', b']'),
        other => panic!("no bracket at {open}, but {:?}", char::from(other)),
    };
    let mut depth = 0usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        if *byte == up {
            depth += 1;
        } else if *byte == down {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}

struct Masker<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
}

impl Masker<'_> {
    fn run(mut self) -> String {
        while self.at < self.bytes.len() {
            match self.bytes[self.at] {
                b'/' if self.peek(1) == Some(b'/') => self.line_comment(),
                b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
                b'"' => self.string(),
                b'\'' => self.character_or_lifetime(),
                byte if is_identifier(byte) => self.word(),
                _ => self.keep(),
            }
        }
        String::from_utf8(self.out).expect("only ASCII is kept")
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn keep(&mut self) {
        let byte = self.bytes[self.at];
        self.out.push(if byte.is_ascii() { byte } else { b' ' });
        self.at += 1;
    }

    fn blank(&mut self, count: usize) {
        for _ in 0..count {
            let Some(byte) = self.peek(0) else { return };
            self.out.push(if byte == b'\n' { b'\n' } else { b' ' });
            self.at += 1;
        }
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|byte| byte != b'\n') {
            self.blank(1);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0usize;
        while self.at < self.bytes.len() {
            if self.bytes[self.at..].starts_with(b"/*") {
                depth += 1;
                self.blank(2);
            } else if self.bytes[self.at..].starts_with(b"*/") {
                depth -= 1;
                self.blank(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.blank(1);
            }
        }
    }

    /// A string with escapes, from its opening quote.
    fn string(&mut self) {
        self.blank(1);
        while let Some(byte) = self.peek(0) {
            self.blank(if byte == b'\\' { 2 } else { 1 });
            if byte == b'"' {
                return;
            }
        }
    }

    /// A raw string from its first `#` or quote.
    fn raw_string(&mut self) {
        let mut hashes = 0;
        while self.peek(0) == Some(b'#') {
            hashes += 1;
            self.blank(1);
        }
        self.blank(1);
        let mut end = vec![b'"'];
        end.resize(1 + hashes, b'#');
        while self.at < self.bytes.len() && !self.bytes[self.at..].starts_with(&end) {
            self.blank(1);
        }
        self.blank(end.len());
    }

    /// `'a'`, `'\n'` and `'\''` are characters; `'a` without a closing quote is a lifetime.
    fn character_or_lifetime(&mut self) {
        let rest = &self.bytes[self.at + 1..];
        let escaped = rest.first() == Some(&b'\\');
        let width = match rest.first() {
            Some(_) if escaped => {
                rest.iter().skip(2).position(|byte| *byte == b'\'').map(|at| at + 2)
            }
            Some(first) => Some(utf8_width(*first)),
            None => None,
        };
        match width {
            Some(width) if rest.get(width) == Some(&b'\'') => self.blank(width + 2),
            _ => self.keep(),
        }
    }

    /// A whole identifier, keyword or number; or the prefix of a string.
    fn word(&mut self) {
        let start = self.at;
        while self.peek(0).is_some_and(is_identifier) {
            self.keep();
        }
        let word = &self.bytes[start..self.at];
        let raw_ahead = match self.peek(0) {
            Some(b'"') => true,
            Some(b'#') => {
                let hashes = self.bytes[self.at..].iter().take_while(|byte| **byte == b'#').count();
                self.peek(hashes) == Some(b'"')
            }
            _ => false,
        };
        if raw_ahead && matches!(word, b"r" | b"br" | b"cr") {
            self.raw_string();
        }
    }
}

fn utf8_width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the words that are left: `Source::new` asserts that the rest is as long.
    #[track_caller]
    fn check(text: &str, code: &str) {
        let source = Source::new(text);
        let words: Vec<&str> = source.code().split_whitespace().collect();
        assert_eq!(words.join(" "), code);
    }

    #[test]
    fn comments_are_blank() {
        check("a // b {\nc", "a c");
        check("a /* b /* c */ { */ d", "a d");
        check("/* open", "");
        assert_eq!(Source::new("a // b\nc").code(), "a     \nc");
    }

    #[test]
    fn strings_are_blank() {
        check(r#"f("{ \" }") + 1"#, "f( ) + 1");
        check("r#\"a \" { \"# }", "r }");
        check("br\"\\\" }", "br }");
        check("r##\"x\"# y\"## }", "r }");
        check("let r#fn = 1;", "let r#fn = 1;");
    }

    #[test]
    fn characters_are_blank_and_lifetimes_stay() {
        check("'{' '\\'' '\\u{7d}' b'}';", "b ;");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        check("'\u{e9}' }", "}");
    }

    #[test]
    fn words_stand_alone() {
        let source = Source::new("fs::read(); vfs::read(); my_fs::x(); std::fs::read()");
        assert_eq!(source.find_word("fs::").len(), 2);
        let source = Source::new("marks mark remark");
        assert_eq!(source.find_word("mark"), vec![6]);
    }

    #[test]
    fn closing_brackets_nest() {
        assert_eq!(closing(b"{ { } ( ) } }", 0), Some(10));
        assert_eq!(closing(b"{ {", 0), None);
    }
}
