//! What the answers of a receiver mean, as the specification of OTLP has it.

use std::{error::Error, time::Duration};

use http::StatusCode;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::sink::Trouble;

/// The media type of requests and answers.
pub(super) const PROTOBUF: &str = "application/x-protobuf";
/// Characters that are shown of what a receiver says.
const SHOWN: usize = 200;

/// An answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The receiver has it.
    Taken(ExportLogsServiceResponse),
    /// Not now.
    No(Trouble),
    /// It must not be tried again.
    Never(String),
}

/// What is to be done after a request of `events` was taken.
pub(super) fn of_partial_success(
    partial: ExportLogsPartialSuccess,
    events: usize,
) -> Result<usize, Trouble> {
    let lost = usize::try_from(partial.rejected_log_records).unwrap_or(0);
    if lost == 0 {
        return Ok(events);
    }
    Err(Trouble::Partly {
        events,
        lost: lost.min(events),
        reason: format!("rejected some: {}", shown(&partial.error_message)),
    })
}

/// Of gRPC.
pub(super) fn of_status(status: &Status) -> Answer {
    // A status that the client made up from an error of the connection has that error
    // as its source; those of the receiver have none.
    if let Some(source) = status.source() {
        return Answer::No(of_transport(source));
    }
    let reason = format!("answers {:?}: {}", status.code(), shown(status.message()));
    let after = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::No(later(reason, after)),
        // Without a time to wait it is the request that is too large.
        Code::ResourceExhausted if after.is_some() => Answer::No(later(reason, after)),
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => Answer::Never(reason),
    }
}

/// Of HTTP.
pub(super) fn of_response(head: &http::response::Parts, body: &[u8]) -> Answer {
    let kind = head
        .headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if head.status.is_success() {
        // Fluent Bit answers with nothing, others with an empty object.
        if body.is_empty() || kind.starts_with("application/json") {
            return Answer::Taken(ExportLogsServiceResponse::default());
        }
        return match ExportLogsServiceResponse::decode(body) {
            Ok(response) if kind.starts_with(PROTOBUF) => Answer::Taken(response),
            Ok(_) | Err(_) => Answer::Never(format!(
                "answers {} with {}, as no receiver of OTLP does; correct the URL",
                head.status,
                shown(kind)
            )),
        };
    }
    let mut reason = format!("answers {}", head.status);
    if kind.starts_with(PROTOBUF)
        && let Ok(status) = tonic_types::Status::decode(body)
        && !status.message.is_empty()
    {
        reason = format!("{reason}: {}", shown(&status.message));
    }
    match head.status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = head.headers.get(http::header::RETRY_AFTER);
            let after = after.and_then(|after| after.to_str().ok());
            Answer::No(later(reason, after.and_then(retry_after)))
        }
        _ => Answer::Never(reason),
    }
}

/// Of an error of the connection.
pub(super) fn of_transport(error: &(dyn Error + 'static)) -> Trouble {
    let mut reason = with_causes(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(is_of_another_protocol)
        {
            reason.push_str("; a receiver of gRPC has a URL of grpc: or grpcs:");
            break;
        }
        cause = error.source();
    }
    Trouble::Away(reason)
}

/// What hyper says of a peer whose first bytes are no answer to a request of HTTP/1.1:
/// one that cannot be parsed, one that breaks off, and, where they come before the
/// request has left, as the settings of HTTP/2 do, one that was not asked for. Of the
/// last it has neither a predicate nor a cause.
fn is_of_another_protocol(error: &hyper::Error) -> bool {
    let known = error.is_canceled()
        || error.is_closed()
        || error.is_user()
        || error.is_timeout()
        || error.is_shutdown()
        || error.is_body_write_aborted();
    error.is_parse() || error.is_incomplete_message() || (error.source().is_none() && !known)
}

/// An error and what caused it, in one line.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    shown(&line)
}

fn later(reason: String, after: Option<Duration>) -> Trouble {
    match after {
        Some(after) => Trouble::Busy { reason, after },
        None => Trouble::Away(reason),
    }
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    let wait = at.duration_since(crate::clock::Clock::now());
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

/// What another said, fit for a line of ours.
fn shown(text: &str) -> String {
    let mut line: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN + 1)
        .collect();
    if line.chars().count() > SHOWN {
        line = line.chars().take(SHOWN).chain(['…']).collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> http::response::Parts {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    fn word(answer: &Answer) -> &'static str {
        match answer {
            Answer::Taken(_) => "taken",
            Answer::No(Trouble::Busy { .. }) => "busy",
            Answer::No(_) => "away",
            Answer::Never(_) => "never",
        }
    }

    fn pause(answer: &Answer) -> Option<Duration> {
        match answer {
            Answer::No(Trouble::Busy { after, .. }) => Some(*after),
            Answer::Taken(_) | Answer::No(_) | Answer::Never(_) => None,
        }
    }

    /// Bytes that come before the request, or instead of an answer.
    #[tokio::test]
    async fn a_peer_of_another_protocol_is_told_of() {
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        for before in [true, false] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let io = hyper_util::rt::TokioIo::new(ours);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let connection = tokio::spawn(connection);
            let error = if before {
                theirs.write_all(SETTINGS).await.unwrap();
                connection.await.unwrap().unwrap_err()
            } else {
                let request = http::Request::new(String::new());
                let answer = tokio::spawn(sender.send_request(request));
                theirs.read_u8().await.unwrap();
                theirs.write_all(SETTINGS).await.unwrap();
                answer.await.unwrap().unwrap_err()
            };
            let Trouble::Away(reason) = of_transport(&error) else {
                panic!("{error}");
            };
            assert!(reason.ends_with("has a URL of grpc: or grpcs:"), "{reason}");
        }
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(matches!(of_transport(&refused), Trouble::Away(line) if !line.contains("gRPC")));
    }

    #[test]
    fn codes_of_grpc_are_sorted_as_the_specification_does() {
        for code in (0..17).map(Code::from_i32) {
            let again = [
                Code::Cancelled,
                Code::DeadlineExceeded,
                Code::Aborted,
                Code::OutOfRange,
                Code::Unavailable,
                Code::DataLoss,
            ];
            let expect = if again.contains(&code) {
                "away"
            } else {
                "never"
            };
            let answer = of_status(&Status::new(code, "why"));
            assert_eq!(word(&answer), expect, "{code:?}");
        }
        let mut details = tonic_types::ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(7)));
        let status = Status::with_error_details(Code::ResourceExhausted, "slow", details);
        assert_eq!(pause(&of_status(&status)), Some(Duration::from_secs(7)));
    }

    #[test]
    fn statuses_of_http_are_sorted_as_the_specification_does() {
        for (status, expect) in [
            (200, "taken"),
            (201, "taken"),
            (204, "taken"),
            (301, "never"),
            (400, "never"),
            (401, "never"),
            (404, "never"),
            (429, "away"),
            (500, "never"),
            (502, "away"),
            (503, "away"),
            (504, "away"),
        ] {
            assert_eq!(
                word(&of_response(&head(status, &[]), b"")),
                expect,
                "{status}"
            );
        }
        let busy = |value: &str| {
            let answer = of_response(&head(503, &[("retry-after", value)]), b"");
            pause(&answer).unwrap()
        };
        assert_eq!(busy("12"), Duration::from_secs(12));
        assert_eq!(busy("Wed, 21 Oct 2015 07:28:00 GMT"), Duration::ZERO);
        assert!(busy("Sun, 21 Oct 2525 07:28:00 GMT") > Duration::from_secs(1_000));
    }

    #[test]
    fn a_page_is_no_receipt() {
        let html = head(200, &[("content-type", "text/html")]);
        assert_eq!(word(&of_response(&html, b"<html>")), "never");
        let json = head(200, &[("content-type", "application/json")]);
        assert_eq!(word(&of_response(&json, b"{}")), "taken");
    }

    #[test]
    fn what_was_rejected_is_lost() {
        let partial = |rejected_log_records| ExportLogsPartialSuccess {
            rejected_log_records,
            error_message: "too\nold".into(),
        };
        assert!(matches!(of_partial_success(partial(0), 5), Ok(5)));
        match of_partial_success(partial(9), 5) {
            Err(Trouble::Partly {
                events: 5,
                lost: 5,
                reason,
            }) => {
                assert_eq!(reason, "rejected some: too old");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_message_of_a_refusal_is_shown_in_one_line() {
        let status = tonic_types::Status {
            code: 3,
            message: "no\u{1b}[31m such\ntenant".into(),
            details: Vec::new(),
        };
        let head = head(400, &[("content-type", PROTOBUF)]);
        let Answer::Never(reason) = of_response(&head, &status.encode_to_vec()) else {
            panic!("not refused");
        };
        assert_eq!(reason, "answers 400 Bad Request: no[31m such tenant");
        assert_eq!(shown(&"x".repeat(1_000)).chars().count(), SHOWN + 1);
    }
}
