// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Addresses of exports.

use super::super::uri::{Address, NbdUri, UriError};

fn tcp(host: &str, port: u16) -> Address {
    let host = host.into();
    Address::Tcp { host, port }
}

#[test]
fn addresses_are_those_of_the_specification() {
    for (text, address, export) in [
        ("nbd://example.com/disk", tcp("example.com", 10809), "disk"),
        ("nbd://example.com", tcp("example.com", 10809), ""),
        ("nbd://example.com:/", tcp("example.com", 10809), ""),
        (
            "nbd://example.com//disk",
            tcp("example.com", 10809),
            "/disk",
        ),
        (
            "nbd://example.com/hello%20world",
            tcp("example.com", 10809),
            "hello world",
        ),
        ("NBD://127.0.0.1:1/a/b", tcp("127.0.0.1", 1), "a/b"),
        ("nbd://[::1]:65535/", tcp("::1", 65535), ""),
        (
            "nbd+unix:///disk?socket=nbd.sock",
            Address::Unix("nbd.sock".into()),
            "disk",
        ),
        (
            "nbd+unix:///?socket=/tmp/a%20b%3F",
            Address::Unix("/tmp/a b?".into()),
            "",
        ),
    ] {
        let uri: NbdUri = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (&uri.address, uri.export.as_str()),
            (&address, export),
            "{text}"
        );
        assert_eq!(uri.to_string(), text);
    }
}

#[test]
fn tls_has_parameters() {
    let tls = |text: &str| text.parse::<NbdUri>().unwrap().tls.unwrap();
    for (text, hostname) in [
        (
            "nbds://example.com/?tls-certificates=/etc/pki",
            "example.com",
        ),
        ("nbds://[::1]/?tls-certificates=/etc/pki", "::1"),
        (
            "nbds://h/?tls-hostname=x.y&tls-certificates=/etc/pki",
            "x.y",
        ),
        (
            "nbds+unix:///?socket=a&tls-certificates=/etc/pki&tls-hostname=x",
            "x",
        ),
    ] {
        assert_eq!(tls(text).hostname, hostname, "{text}");
        assert_eq!(tls(text).certificates.as_os_str(), "/etc/pki");
    }
}

#[test]
fn other_texts_are_refused_with_a_reason() {
    let error = |text: &str| text.parse::<NbdUri>().unwrap_err();
    assert!(matches!(error("a b"), UriError::Syntax(_)));
    assert!(matches!(error("http://example.com/"), UriError::Scheme(_)));
    assert_eq!(error("nbd:///disk"), UriError::NoHost);
    assert_eq!(error("nbd:disk"), UriError::NoHost);
    assert_eq!(error("nbd://h:65536/"), UriError::Port);
    assert_eq!(error("nbd://me@h/"), UriError::User);
    assert_eq!(error("nbd+unix:///disk"), UriError::NoSocket);
    assert_eq!(error("nbd+unix://h/disk?socket=a"), UriError::HostOfUnix);
    assert_eq!(error("nbds://h/"), UriError::NoCertificates);
    let without = "nbds+unix:///?socket=a&tls-certificates=b";
    assert_eq!(error(without), UriError::NoHostname);
    assert_eq!(error("nbd://h/%ff"), UriError::Export);
    assert_eq!(error("nbd://h/%00"), UriError::Export);
    assert_eq!(
        error(&format!("nbd://h/{}", "x".repeat(4097))),
        UriError::Export
    );
    for text in [
        "nbd://h/?socket=a",
        "nbd://h/?x",
        "nbd://h/#x",
        "nbd+unix:///?socket=",
        "nbd+unix:///?socket=a&socket=b",
        "nbd+unix:///?socket=a&tls=1",
        // Without TLS it would say something that is not so.
        "nbd://h/?tls-certificates=b",
        "nbds://h/?tls-certificates=b&tls-certificates=b",
    ] {
        assert!(matches!(error(text), UriError::Parameter(_)), "{text}");
    }
}
