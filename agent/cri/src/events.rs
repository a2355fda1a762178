//! What happened in the runtime, as hints to look again.
//!
//! Three sources, the best one the runtime has: CRI's `GetContainerEvents` (containerd 1.7+, CRI-O), containerd's own
//! event service (1.6), and a relist at a modest pace. The first two may send their headers only with the first
//! event, so nobody ever waits for a subscription to stand; that is also why the relist never stops altogether: what
//! happened between start and subscription would be missed.

use crate::client::Runtime;
use k8s_cri::v1::GetEventsRequest;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::metadata::MetadataValue;

/// Pause before a subscription that broke is made again.
const AGAIN: Duration = Duration::from_millis(500);

/// After an event of containerd's own service the hint is repeated after these pauses: its CRI part learns of an exit by
/// the same event, and shows it some milliseconds later than we ask.
const LATER: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

/// Sends a hint for each event until the receiver is gone. A full queue drops hints: one pending is enough.
pub async fn watch(runtime: Runtime, hints: mpsc::Sender<()>) {
    let mut cri = true;
    while !hints.is_closed() {
        let ended = if cri {
            cri_events(&runtime, &hints).await
        } else {
            containerd_events(&runtime, &hints).await
        };
        match ended {
            Some(Code::Unimplemented) if cri => {
                cri = false;
                continue;
            }
            Some(Code::Unimplemented) => return hints.closed().await,
            ended => tracing::debug!(?ended, "the runtime's events ended, will be asked for again"),
        }
        // The runtime went away or came back: look, then subscribe again.
        hint(&hints);
        tokio::select! {
            () = hints.closed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn hint(hints: &mpsc::Sender<()>) {
    // Full means that a hint is waiting already.
    let _ = hints.try_send(());
}

async fn cri_events(runtime: &Runtime, hints: &mpsc::Sender<()>) -> Option<Code> {
    let mut stream = match runtime.runtime().get_container_events(GetEventsRequest {}).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Some(status.code()),
    };
    loop {
        hint(hints);
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return Some(status.code()),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

/// `containerd.types.Envelope`; of the fields only the topic is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(string, tag = "3")]
    topic: String,
}

async fn containerd_events(runtime: &Runtime, hints: &mpsc::Sender<()>) -> Option<Code> {
    let mut client = tonic::client::Grpc::new(runtime.channel());
    if client.ready().await.is_err() {
        return Some(Code::Unavailable);
    }
    let filters =
        ["/tasks/start", "/tasks/exit", "/tasks/oom"].map(|t| format!("namespace==\"k8s.io\",topic=={t:?}"));
    let mut request = tonic::Request::new(SubscribeRequest {
        filters: filters.to_vec(),
    });
    request
        .metadata_mut()
        .insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    let path = http::uri::PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Envelope>::default();
    let mut stream = match client.server_streaming(request, path, codec).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Some(status.code()),
    };
    let mut pending = &LATER[..];
    loop {
        hint(hints);
        let pause = pending.first().copied();
        let wait = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(event)) => {
                    tracing::trace!(topic = event.topic, "runtime event");
                    pending = &LATER[..];
                }
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            },
            () = wait => pending = &pending[1..],
        }
    }
}
