//! The flags of every command that streams events, and what they come to.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    net::TcpListener,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use ipvs_guard_common::filter::{Filter, MAX_RULES, Rule, Rules};

use super::export::{self, Exports};
use crate::{
    agent::{self, Settings},
    enforce,
    event::Class,
    failure::Failure,
    metrics::{self, Metrics, Server},
    preflight,
    settings::{self, Client, Target},
    sink::{Human, Json, LogFile, Rotation, Sink},
};

#[derive(Debug, clap::Args)]
#[group(id = "stream")]
pub(super) struct Args {
    /// Form of the events: human, or json (one object a line); json when standard
    /// output is no terminal
    #[arg(long, value_name = "FORM", env = "IPVS_GUARD_FORMAT")]
    format: Option<Form>,

    /// Only events of these classes: stale_reuse, rescheduled, drain_started,
    /// drain_ended, loss, trace; all but rescheduled when not given
    #[arg(
        long = "event",
        value_name = "CLASS,…",
        value_delimiter = ',',
        env = "IPVS_GUARD_EVENT"
    )]
    events: Vec<Class>,

    /// Only these virtual services; up to 8, IPv6 with a port as [ADDR]:PORT
    #[arg(
        long,
        value_name = "ADDR[:PORT],…",
        value_delimiter = ',',
        env = "IPVS_GUARD_VIP"
    )]
    vip: Vec<Target>,

    /// Only clients of these addresses or networks; up to 8
    #[arg(
        long,
        value_name = "CIDR,…",
        value_delimiter = ',',
        env = "IPVS_GUARD_CLIENT"
    )]
    client: Vec<Client>,

    /// Only these real servers; up to 8, IPv6 with a port as [ADDR]:PORT
    #[arg(
        long,
        value_name = "ADDR[:PORT],…",
        value_delimiter = ',',
        env = "IPVS_GUARD_DEST"
    )]
    dest: Vec<Target>,

    /// End after this time, such as 30s or 5m; waiting for ip_vs counts, and from the
    /// first ready on it counts anew
    #[arg(long, value_name = "T", value_parser = settings::duration, env = "IPVS_GUARD_DURATION")]
    duration: Option<Duration>,

    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), env = "IPVS_GUARD_MAX_EVENTS")]
    max_events: Option<u64>,

    /// Follow each SYN through ip_vs_in, its lookup and its verdict, and time it;
    /// costs two more probes and two return probes a packet
    #[arg(long, value_parser = settings::switch(), env = "IPVS_GUARD_TRACE")]
    trace: bool,

    /// Write the events to this file as well, one JSON object a line; opened anew on
    /// SIGHUP and when it was moved away
    #[arg(long, value_name = "FILE", env = "IPVS_GUARD_OUTPUT")]
    output: Option<PathBuf>,

    /// Rename the file of --output to FILE.1 before it has more bytes, such as 100MB or
    /// 64MiB; never when not given
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = settings::size,
        env = "IPVS_GUARD_ROTATE_SIZE"
    )]
    rotate_size: Option<u64>,

    /// How many renamed files of --output are kept, FILE.1 the youngest
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(..=10_000),
        env = "IPVS_GUARD_ROTATE_KEEP"
    )]
    rotate_keep: u32,

    #[command(flatten)]
    names: export::NameArgs,

    /// Take the kernel's structure layout from this BTF or ELF file
    #[arg(long, value_name = "FILE", env = "IPVS_GUARD_BTF")]
    btf: Option<PathBuf>,

    #[command(flatten)]
    export: export::Args,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Aligned columns and a summary.
    Human,
    /// One JSON object a line.
    Json,
}

impl Args {
    /// Whether the values go together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.export.check()?;
        if self.rotate_size.is_some() && self.output.is_none() {
            return Err(Failure::Usage(
                "--rotate-size: it is the file of --output that is renamed; add --output FILE"
                    .into(),
            ));
        }
        classes(self.events.clone(), self.trace)?;
        rules("--vip", self.vip.clone())?;
        rules("--client", self.client.clone())?;
        rules("--dest", self.dest.clone())?;
        Ok(())
    }

    /// Whether the files serve that are only read once ip_vs is there.
    pub(super) fn check_files(&self) -> Result<(), Failure> {
        preflight::check_btf(self.btf.as_deref())
    }

    /// What is handed to other programs, from the network namespace of now.
    pub(super) fn open_exports(&self) -> Result<Exports, Failure> {
        self.export.open()
    }

    /// Streams the events of the network namespace with inode `netns`, which may be found
    /// at `place`, of all if there is none, until the agent ends.
    pub(super) fn stream(
        self,
        netns: Option<u32>,
        place: Option<PathBuf>,
        enforce: Option<enforce::Settings>,
        exports: Exports,
    ) -> Result<(), Failure> {
        let Self {
            format,
            events,
            vip,
            client,
            dest,
            duration,
            max_events,
            trace,
            output,
            rotate_size,
            rotate_keep,
            names,
            btf,
            export: _,
        } = self;
        let reopen = Arc::new(AtomicBool::new(false));
        let mut settings = Settings {
            classes: classes(events, trace)?,
            filter: Filter {
                vip: rules("--vip", vip)?,
                client: rules("--client", client)?,
                dest: rules("--dest", dest)?,
                netns: netns.unwrap_or(0),
                pad: 0,
            },
            duration,
            max_events,
            trace,
            btf,
            enforce,
            reopen: output.is_some().then(|| Arc::clone(&reopen)),
            metrics: None,
            names: names.open()?,
        };
        let mut sinks = vec![stdout_sink(format, netns.is_none())?];
        if let Some(path) = output {
            let rotation = Rotation {
                size: rotate_size,
                keep: rotate_keep,
            };
            sinks.push(file_sink(&path, rotation, reopen)?);
        }
        let Exports {
            sinks: others,
            listener,
        } = exports;
        sinks.extend(others);
        let _server = match listener {
            Some(listener) => Some(serve(listener, place, &mut settings)?),
            None => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let outcome = runtime.block_on(agent::run(settings, sinks));
        // A proof under way is not waited for: the process ends, and it with it.
        runtime.shutdown_background();
        outcome
    }
}

/// Serves what is counted from here on.
fn serve(
    listener: TcpListener,
    place: Option<PathBuf>,
    settings: &mut Settings,
) -> Result<Server, Failure> {
    let enforced = settings.enforce.as_ref().map(|_| Arc::default());
    let metrics = Arc::new(Metrics::new(enforced));
    settings.metrics = Some(Arc::clone(&metrics));
    let scope = metrics::Scope {
        filter: settings.filter,
        netns: place,
    };
    Ok(Server::start(listener, metrics, scope).context("starting --metrics")?)
}

fn classes(events: Vec<Class>, trace: bool) -> Result<Vec<Class>, Failure> {
    if events.contains(&Class::Trace) && !trace {
        return Err(Failure::Usage(
            "--event trace: traces come with --trace only; add it".into(),
        ));
    }
    if events.is_empty() {
        return Ok(Class::ALL
            .iter()
            .copied()
            .filter(|class| class.by_default())
            .collect());
    }
    Ok(events)
}

fn rules<T: Into<Rule>>(flag: &str, values: Vec<T>) -> Result<Rules, Failure> {
    let mut rules = Rules::default();
    let count = values.len();
    for value in values {
        rules.push(value.into()).map_err(|_| {
            let instead = match flag {
                "--client" => "networks instead of addresses",
                _ => "an address without its port for all its ports",
            };
            Failure::Usage(format!(
                "{flag}: {count} values, but the kernel side takes {MAX_RULES}; \
                 give fewer, or {instead}"
            ))
        })?;
    }
    Ok(rules)
}

/// Events on standard output. Its own descriptor: no buffer in between that
/// could hold half a line when a disk is full.
fn stdout_sink(format: Option<Form>, many_namespaces: bool) -> Result<Sink, Failure> {
    const STAGE: &str = "sink.stdout";
    const WHAT: &str = "standard output";
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let out = File::from(
        stdout
            .as_fd()
            .try_clone_to_owned()
            .context("duplicating standard output")?,
    );
    let sink = match format.unwrap_or(if terminal { Form::Human } else { Form::Json }) {
        Form::Json => Sink::start(STAGE, WHAT, Json, out),
        Form::Human => {
            let colour = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
            Sink::start(STAGE, WHAT, Human::new(colour, many_namespaces), out)
        }
    };
    Ok(sink.context("starting the sink")?)
}

fn file_sink(path: &Path, rotation: Rotation, reopen: Arc<AtomicBool>) -> Result<Sink, Failure> {
    let what = format!("--output {}", path.display());
    let file = LogFile::open(path, rotation, reopen).map_err(|error| {
        Failure::Usage(format!(
            "{what}: {error}; give a file in a folder that is there and may be written"
        ))
    })?;
    Ok(Sink::start("sink.file", what, Json, file).context("starting the sink")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_values_get_advice_that_their_flag_takes() {
        let clients: Vec<Client> = (0..9)
            .map(|i| format!("10.0.0.{i}").parse().unwrap())
            .collect();
        let line = rules("--client", clients).unwrap_err().to_string();
        assert!(
            line.contains("9 values") && line.contains("networks"),
            "{line}"
        );
        let vips: Vec<Target> = (0..9)
            .map(|i| format!("10.0.0.{i}:80").parse().unwrap())
            .collect();
        let line = rules("--vip", vips).unwrap_err().to_string();
        assert!(line.contains("without its port"), "{line}");
        assert!(!line.contains("networks"), "{line}");
    }
}
