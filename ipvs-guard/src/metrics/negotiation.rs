//! Which of the two text forms a scraper is given.

/// A text form of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own, 0.0.4: what is given to whoever does not ask for the other.
    Classic,
}

impl Form {
    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The form that `accept`, the value of `Accept`, likes best. OpenMetrics must be
    /// asked for by its name, in a version that is given here.
    pub fn wanted(accept: &str) -> Self {
        let (mut open_metrics, mut classic) = (None, Quality::default());
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut known) = (1.0, true);
            for parameter in parts {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                let value = value.trim().trim_matches('"');
                if name.trim().eq_ignore_ascii_case("q") {
                    quality = value.parse().unwrap_or(0.0);
                } else if name.trim().eq_ignore_ascii_case("version") {
                    known = matches!(value, "1.0.0" | "0.0.1");
                }
            }
            if kind.eq_ignore_ascii_case("application/openmetrics-text") {
                if known {
                    let best: f32 = open_metrics.unwrap_or(0.0);
                    open_metrics = Some(best.max(quality));
                }
            } else {
                classic.note(kind, quality);
            }
        }
        match open_metrics {
            Some(quality) if quality > 0.0 && quality >= classic.value() => Self::OpenMetrics,
            Some(_) | None => Self::Classic,
        }
    }
}

/// How much the classic form is liked; what names it more closely counts.
#[derive(Default)]
struct Quality {
    plain: Option<f32>,
    text: Option<f32>,
    any: Option<f32>,
}

impl Quality {
    fn note(&mut self, kind: &str, quality: f32) {
        let place = if kind.eq_ignore_ascii_case("text/plain") {
            &mut self.plain
        } else if kind.eq_ignore_ascii_case("text/*") {
            &mut self.text
        } else if kind == "*/*" {
            &mut self.any
        } else {
            return;
        };
        *place = Some(place.unwrap_or(0.0).max(quality));
    }

    fn value(&self) -> f32 {
        self.plain.or(self.text).or(self.any).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_liked_best() {
        use Form::{Classic, OpenMetrics};
        for (accept, form) in [
            ("", Classic),
            ("*/*", Classic),
            ("text/plain", Classic),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Classic),
            ("application/json", Classic),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0", OpenMetrics),
            (
                "application/openmetrics-text;version=\"0.0.1\"",
                OpenMetrics,
            ),
            ("application/openmetrics-text;version=2.0.0", Classic),
            ("application/openmetrics-text;q=0", Classic),
            ("application/openmetrics-text;q=0.2,*/*", Classic),
            (
                "application/openmetrics-text;q=0.5,text/plain;q=0.4,*/*",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.5, text/*;q=0.6", Classic),
            ("application/openmetrics-text;q=nonsense", Classic),
            // Prometheus 2.53 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
                 escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            // Prometheus with scrape_protocols: [PrometheusText0.0.4].
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.4", Classic),
        ] {
            assert_eq!(Form::wanted(accept), form, "{accept}");
        }
    }
}
