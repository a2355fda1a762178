//! The node's own logs: `/var/log` as pages, for who may ask a kubelet. Folders are lists of links.

use super::Body;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::io::ReaderStream;

/// Where a node's logs are.
pub(super) const ROOT: &str = "/var/log";

/// The page of `path`, as the URL has it below the root.
///
/// # Errors
/// What the file system says; nothing outside of `root` is found, wherever links lead.
pub(super) async fn page(root: &Path, path: &str) -> io::Result<Response<Body>> {
    let file = inside(root, path).await?;
    let meta = tokio::fs::metadata(&file).await?;
    if meta.is_dir() {
        return match path.is_empty() || path.ends_with('/') {
            true => list(&file).await,
            false => Ok(redirect(path)),
        };
    }
    if !meta.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let chunks = ReaderStream::new(tokio::fs::File::open(&file).await?);
    let body = StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync();
    Ok(typed(body, "text/plain; charset=utf-8"))
}

/// The file that is meant. What does not lie below the root is not there, as far as the client can tell.
async fn inside(root: &Path, path: &str) -> io::Result<PathBuf> {
    let decoded = decoded(path);
    let root = tokio::fs::canonicalize(root).await?;
    let file = tokio::fs::canonicalize(root.join(decoded.trim_matches('/'))).await?;
    if file.starts_with(&root) {
        Ok(file)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// A path without its percent signs; what is no such sign stands for itself.
fn decoded(path: &str) -> String {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let code = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Links in a page of a folder are relative to its path with a slash.
fn redirect(path: &str) -> Response<Body> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut response = typed(full(String::new()), "text/plain");
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{name}/")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

async fn list(folder: &Path) -> io::Result<Response<Body>> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        let end = if entry.file_type().await?.is_dir() {
            "/"
        } else {
            ""
        };
        names.push(format!("{}{end}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let links = names.iter().map(|name| {
        let url: String = form_urlencoded::byte_serialize(name.trim_end_matches('/').as_bytes()).collect();
        let end = if name.ends_with('/') { "/" } else { "" };
        format!(
            "<a href=\"{}{end}\">{}</a>\n",
            url.replace('+', "%20"),
            escaped(name)
        )
    });
    let page = format!("<pre>\n{}</pre>\n", links.collect::<String>());
    Ok(typed(full(page), "text/html; charset=utf-8"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn full(text: String) -> Body {
    let body = Full::new(Bytes::from(text));
    body.map_err(|never| match never {}).boxed_unsync()
}

fn typed(body: Body, media: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(root: &Path, path: &str) -> io::Result<String> {
        let body = page(root, path).await?.into_body().collect().await?;
        Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn folders_are_lists_files_are_text_and_nothing_outside_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a b"), "line\n").unwrap();
        std::fs::write(dir.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        let listed = body(&root, "").await.unwrap();
        assert!(listed.contains(r#"<a href="a%20b">a b</a>"#), "{listed}");
        assert!(listed.contains(r#"<a href="sub/">sub/</a>"#), "{listed}");
        assert_eq!(body(&root, "a%20b").await.unwrap(), "line\n");
        let moved = page(&root, "sub").await.unwrap();
        assert_eq!(moved.headers()[LOCATION], "sub/");
        for outside in ["link", "../secret", "%2e%2e/secret", "none"] {
            let error = body(&root, outside).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{outside}");
        }
    }
}
