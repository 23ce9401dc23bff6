//! Sends the spans of Sortie's sessions, steps and commands to an OpenTelemetry collector: OTLP over HTTP, in protobuf.
//!
//! For a whole program, such as the `sortie` command built with its feature `otel`, there is [`Export::from_env`] and
//! [`Export::install`]. A program that has a subscriber of its own adds [`Export::layer`] to it. What spans hold is
//! decided in `sortie_client`; this crate only carries them. There is no TLS in it: name a collector beside this program, which
//! passes on.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How long one delivery may take, where `OTEL_EXPORTER_OTLP_TIMEOUT` says nothing else.
const LIMIT: Duration = Duration::from_secs(5);

/// Why no spans are sent, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The address is none that can be sent to.
    #[error(
        "{variable}: {address:?} is no http:// address; name a collector that listens without TLS, beside this program"
    )]
    Address {
        /// Where it comes from.
        variable: &'static str,
        /// As it stands there.
        address: String,
    },
    /// What the exporter says.
    #[error("spans cannot be sent: {0}")]
    Exporter(String),
    /// The program has another subscriber.
    #[error("spans cannot be taken: {0}")]
    Subscriber(String),
}

/// The way of spans to a collector. Spans are gathered and sent in the background; [`Export::finish`] sends the last.
pub struct Export {
    provider: SdkTracerProvider,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Export")
    }
}

impl Export {
    /// To where `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` (the whole address) or `OTEL_EXPORTER_OTLP_ENDPOINT` (to which
    /// `/v1/traces` is added) say; `None` where neither is set, or `OTEL_SDK_DISABLED` is `true`. Not to be called from within an async
    /// runtime.
    ///
    /// # Errors
    /// [`ExportError::Address`] and [`ExportError::Exporter`].
    pub fn from_env(service: &str) -> Result<Option<Self>, ExportError> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let (variable, address, whole) = match (set(TRACES), set(ALL)) {
            (Some(address), _) => (TRACES, address.clone(), address),
            (None, Some(address)) => {
                let whole = format!("{}/v1/traces", address.trim_end_matches('/'));
                (ALL, address, whole)
            }
            (None, None) => return Ok(None),
        };
        if !whole.starts_with("http://") {
            return Err(ExportError::Address { variable, address });
        }
        Self::to(&whole, service).map(Some)
    }

    /// To this address, such as `http://127.0.0.1:4318/v1/traces`, in the name of `service`. Not to be called from within an
    /// async runtime.
    ///
    /// # Errors
    /// [`ExportError::Exporter`].
    pub fn to(address: &str, service: &str) -> Result<Self, ExportError> {
        let exporter = SpanExporter::builder().with_http().with_endpoint(address).with_timeout(LIMIT).build();
        let exporter = exporter.map_err(|error| ExportError::Exporter(error.to_string()))?;
        let resource = Resource::builder().with_service_name(service.to_owned()).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider })
    }

    /// Takes Sortie's spans, and no others, for a subscriber of the caller's.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        // What sends spans makes some of its own.
        let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("sortie_"));
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("sortie")).with_filter(ours)
    }

    /// Takes Sortie's spans from here on, for a program that has no subscriber yet.
    ///
    /// # Errors
    /// [`ExportError::Subscriber`].
    pub fn install(&self) -> Result<(), ExportError> {
        let subscriber = tracing_subscriber::registry().with(self.layer());
        subscriber.try_init().map_err(|error| ExportError::Subscriber(error.to_string()))
    }

    /// Sends what is left. Blocks for some seconds at most.
    ///
    /// # Errors
    /// [`ExportError::Exporter`]: not everything was delivered.
    pub fn finish(self) -> Result<(), ExportError> {
        self.provider.shutdown().map_err(|error| ExportError::Exporter(error.to_string()))
    }
}
