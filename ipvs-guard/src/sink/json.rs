//! NDJSON: one object a line.

use bytes::{BufMut, BytesMut};

use super::Format;
use crate::{event::Event, pipeline::Summary};

/// The NDJSON form.
#[derive(Debug, Default)]
pub struct Json;

impl Format for Json {
    fn event(&mut self, event: &Event, out: &mut BytesMut) {
        let start = out.len();
        // Neither the keys nor a BytesMut can fail; a half object must not stay.
        if serde_json::to_writer(out.writer(), event).is_err() {
            out.truncate(start);
            return;
        }
        out.put_u8(b'\n');
    }

    fn summary(&mut self, _: &Summary, _: &mut BytesMut) {}
}
