//! Prompts from files and streams: one a line, as JSON or as plain text. A line that is not understood is a result, not an end.

use std::io::{self, BufRead, Read as _};

use clap::ValueEnum;
use serde_json::Value;

/// Longest line that is read, in bytes. A text encoder reads some hundred.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What a line of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum InputForm {
    /// JSON if it is a JSON object, else text. Whoever writes a prompt chooses which: not for prompts of strangers.
    #[default]
    Auto,
    /// {"prompt": "...", "id": ...}; other members are ignored.
    Jsonl,
    /// The prompt itself.
    Text,
}

/// One line of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Its number, from 1.
    pub line: usize,
    /// What the caller calls it.
    pub id: Option<Value>,
    /// The prompt, or why there is none.
    pub prompt: Result<String, String>,
}

impl Input {
    /// A prompt that stands alone.
    pub fn single(prompt: &str) -> Self {
        Self {
            line: 1,
            id: None,
            prompt: Ok(prompt.to_owned()),
        }
    }

    /// Reads line number `line`, without its end. `None` if it is blank.
    pub fn parse(bytes: &[u8], line: usize, form: InputForm) -> Option<Self> {
        // some editors begin a file with a mark of its encoding, which is no part of the prompt
        let bytes = match bytes.strip_prefix("\u{FEFF}".as_bytes()) {
            Some(rest) if line == 1 => rest,
            _ => bytes,
        };
        if bytes.trim_ascii().is_empty() {
            return None;
        }
        let refused = |reason: String| Self {
            line,
            id: None,
            prompt: Err(format!("line {line} {reason}")),
        };
        if bytes.len() > MAX_LINE_BYTES {
            return Some(refused(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Some(refused("is not UTF-8".into()));
        };
        let object = match form {
            InputForm::Text => None,
            InputForm::Auto if !text.trim_ascii_start().starts_with('{') => None,
            InputForm::Auto | InputForm::Jsonl => match serde_json::from_str(text) {
                Ok(Value::Object(object)) => Some(object),
                Ok(_) => return Some(refused("is no JSON object".into())),
                Err(_) if form == InputForm::Auto => None,
                Err(error) => return Some(refused(format!("is no JSON object: {error}"))),
            },
        };
        let Some(mut object) = object else {
            return Some(Self {
                line,
                id: None,
                prompt: Ok(text.to_owned()),
            });
        };
        let prompt = match object.remove("prompt") {
            Some(Value::String(prompt)) => Ok(prompt),
            _ => Err(format!(
                "line {line} has no member \"prompt\" that is a text"
            )),
        };
        Some(Self {
            line,
            id: object.remove("id"),
            prompt,
        })
    }
}

/// The lines of a stream that are not blank.
#[derive(Debug)]
pub struct Inputs<R> {
    reader: R,
    form: InputForm,
    line: usize,
}

impl<R: BufRead> Inputs<R> {
    /// Of `reader`.
    pub fn new(reader: R, form: InputForm) -> Self {
        Self {
            reader,
            form,
            line: 0,
        }
    }

    /// The next line without its end; `None` at the end of the stream. Of a line that is too long a piece that is too long.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let most = MAX_LINE_BYTES as u64 + 2;
        if (&mut self.reader)
            .take(most)
            .read_until(b'\n', &mut bytes)?
            == 0
        {
            return Ok(None);
        }
        if bytes.len() as u64 == most && !bytes.ends_with(b"\n") {
            self.skip_line()?;
        } else {
            for end in [b'\n', b'\r'] {
                bytes.pop_if(|last| *last == end);
            }
        }
        Ok(Some(bytes))
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let (read, ends) = (buffer.len(), end.is_some() || buffer.is_empty());
            self.reader.consume(end.map_or(read, |end| end + 1));
            if ends {
                return Ok(());
            }
        }
    }
}

impl<R: BufRead> Iterator for Inputs<R> {
    type Item = io::Result<Input>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let bytes = match self.next_line() {
                Ok(bytes) => bytes?,
                Err(error) => return Some(Err(error)),
            };
            self.line += 1;
            if let Some(input) = Input::parse(&bytes, self.line, self.form) {
                return Some(Ok(input));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8], form: InputForm) -> Vec<Input> {
        Inputs::new(bytes, form).map(Result::unwrap).collect()
    }

    #[test]
    fn lines_are_objects_or_text_and_keep_every_character() {
        let bytes = "\u{FEFF}a cat\r\n\n{\"prompt\": \"a \\u200bdog\", \"id\": 7, \"seed\": 1}\n \u{200B}x \n{not json}";
        let inputs = read(bytes.as_bytes(), InputForm::Auto);
        let prompts: Vec<&str> = inputs
            .iter()
            .map(|i| i.prompt.as_deref().unwrap())
            .collect();
        assert_eq!(
            prompts,
            ["a cat", "a \u{200B}dog", " \u{200B}x ", "{not json}"]
        );
        let lines: Vec<usize> = inputs.iter().map(|input| input.line).collect();
        assert_eq!(lines, [1, 3, 4, 5]);
        assert_eq!(inputs[1].id, Some(json!(7)));
        let text = read(b"{\"prompt\": \"a\"}", InputForm::Text);
        assert_eq!(text[0].prompt.as_deref(), Ok("{\"prompt\": \"a\"}"));
    }

    #[test]
    fn lines_that_are_not_understood_say_so_and_the_next_is_read() {
        let mut bytes = b"{\"prompt\": 3, \"id\": \"x\"}\n[1]\n\xff\xfe\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'a', 2 * MAX_LINE_BYTES + 7));
        bytes.extend(b"\n{\"prompt\": \"last\"}\n");
        let inputs = read(&bytes, InputForm::Jsonl);
        let words = ["\"prompt\"", "no JSON object", "UTF-8", "longer"];
        for ((input, word), line) in inputs.iter().zip(words).zip(1..) {
            let reason = input.prompt.as_ref().unwrap_err();
            assert!(reason.contains(word), "{reason}");
            assert!(reason.contains(&format!("line {line}")), "{reason}");
        }
        assert_eq!(inputs[0].id, Some(json!("x")));
        assert_eq!(inputs.len(), 5);
        assert_eq!(inputs[4].prompt.as_deref(), Ok("last"));
    }
}
