//! What comes out of a guest: the command's output, and behind it a token and the command's exit status.

/// Splits the guest's byte stream into output and exit status.
pub(crate) struct Channel {
    token: Vec<u8>,
    pending: Vec<u8>,
    found: bool,
}

impl Channel {
    /// A channel that ends with `token`, a blank, the exit status and a line feed.
    pub(crate) fn new(token: &str) -> Self {
        Self {
            token: token.as_bytes().to_vec(),
            pending: Vec::new(),
            found: false,
        }
    }

    /// Takes the next bytes and gives those that are surely output to `output`. Returns the exit status once it is there.
    pub(crate) fn feed(&mut self, bytes: &[u8], output: &mut dyn FnMut(&[u8])) -> Option<i32> {
        self.pending.extend_from_slice(bytes);
        if !self.found {
            let end = self
                .pending
                .windows(self.token.len())
                .position(|window| window == self.token);
            self.found = end.is_some();
            let sure = end.unwrap_or_else(|| self.pending.len() - self.held_back());
            if sure > 0 {
                output(&self.pending[..sure]);
                self.pending.drain(..sure);
            }
        }
        if !self.found {
            return None;
        }
        let rest = &self.pending[self.token.len()..];
        let line = &rest[..rest.iter().position(|&byte| byte == b'\n')?];
        str::from_utf8(line).ok()?.trim().parse().ok()
    }

    /// Gives out what was held back because it might have become the token; for a guest that ended without one.
    pub(crate) fn close(self, output: &mut dyn FnMut(&[u8])) {
        if !self.found && !self.pending.is_empty() {
            output(&self.pending);
        }
    }

    /// How many bytes at the end of what is pending may be the beginning of the token.
    fn held_back(&self) -> usize {
        (1..self.token.len().min(self.pending.len() + 1))
            .rev()
            .find(|&length| self.pending.ends_with(&self.token[..length]))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(chunks: &[&str]) -> (String, Option<i32>) {
        let mut channel = Channel::new("<end-7>");
        let mut output = Vec::new();
        let mut status = None;
        for chunk in chunks {
            status = channel.feed(chunk.as_bytes(), &mut |bytes| {
                output.extend_from_slice(bytes)
            });
        }
        channel.close(&mut |bytes| output.extend_from_slice(bytes));
        (String::from_utf8_lossy(&output).into_owned(), status)
    }

    #[test]
    fn finds_the_status_behind_the_output() {
        assert_eq!(run(&["hello\n<end-7> 3\n"]), ("hello\n".into(), Some(3)));
        assert_eq!(run(&["<end-7> 0\n"]), (String::new(), Some(0)));
    }

    #[test]
    fn finds_a_status_that_comes_in_pieces() {
        assert_eq!(
            run(&["he", "llo<", "end", "-7", "> 1", "4", "1\n"]),
            ("hello".into(), Some(141))
        );
    }

    #[test]
    fn keeps_what_only_looks_like_the_token() {
        assert_eq!(run(&["a<en", "d of it"]), ("a<end of it".into(), None));
        assert_eq!(run(&["a<end-"]), ("a<end-".into(), None));
    }
}
