//! Where Bedrock's access key comes from: a mounted credentials file, the environment, or the pod's identity.

use crate::secret::SecretFile;
use crate::sigv4::{Credentials, encode};
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Borrowed keys live for hours; they are asked for again well before.
const REFRESH: Duration = Duration::from_secs(600);

/// A source of access keys.
pub(crate) struct AwsKeys {
    file: Option<SecretFile>,
    region: String,
    client: reqwest::Client,
    borrowed: Mutex<Option<(Instant, Arc<Credentials>)>>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl AwsKeys {
    /// `client` asks the pod's identity; its address comes from the environment alone.
    pub fn new(file: Option<SecretFile>, region: &str, client: reqwest::Client) -> Result<Self, String> {
        if let Some(file) = &file {
            parse_file(&file.text()?)?;
        }
        Ok(Self { file, region: region.to_owned(), client, borrowed: Mutex::new(None) })
    }

    /// The key as it is now.
    pub async fn now(&self) -> Result<Arc<Credentials>, String> {
        if let Some(file) = &self.file {
            return parse_file(&file.text()?).map(Arc::new);
        }
        if let (Some(access_key), Some(secret_key)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        {
            let session_token = variable("AWS_SESSION_TOKEN");
            return Ok(Arc::new(Credentials { access_key, secret_key, session_token }));
        }
        let mut borrowed = self.borrowed.lock().await;
        if let Some((since, credentials)) = borrowed.as_ref()
            && since.elapsed() < REFRESH
        {
            return Ok(credentials.clone());
        }
        let fresh = Arc::new(self.borrow().await?);
        *borrowed = Some((Instant::now(), fresh.clone()));
        Ok(fresh)
    }

    async fn borrow(&self) -> Result<Credentials, String> {
        let failed = |e: reqwest::Error| format!("the pod's AWS identity cannot be had: {}", e.without_url());
        if let Some(url) = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            let mut request = self.client.get(&url);
            if let Some(path) = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
                request =
                    request.header("authorization", SecretFile::open(&path_of(&path), "token file")?.text()?.as_ref());
            }
            let reply: Pod = request
                .send()
                .await
                .and_then(reqwest::Response::error_for_status)
                .map_err(failed)?
                .json()
                .await
                .map_err(failed)?;
            return Ok(Credentials {
                access_key: reply.access_key_id,
                secret_key: reply.secret_access_key,
                session_token: reply.token,
            });
        }
        if let (Some(role), Some(path)) = (variable("AWS_ROLE_ARN"), variable("AWS_WEB_IDENTITY_TOKEN_FILE")) {
            let token = SecretFile::open(&path_of(&path), "web identity token")?.text()?;
            let base = variable("AWS_ENDPOINT_URL_STS")
                .unwrap_or_else(|| format!("https://sts.{}.amazonaws.com", self.region));
            let form = format!(
                "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=s3-generator-gateway&RoleArn={}&WebIdentityToken={}",
                encode(&role, false),
                encode(&token, false)
            );
            let request = self.client.post(base).header("content-type", "application/x-www-form-urlencoded").body(form);
            let reply = request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
            return parse_sts(&reply.text().await.map_err(failed)?);
        }
        Err("there is no AWS identity: set credentialsSecretRef, or give the pod one".to_owned())
    }
}

fn path_of(text: &str) -> std::path::PathBuf {
    text.into()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pod {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

fn parse_sts(xml: &str) -> Result<Credentials, String> {
    let member = |name: &str| -> Option<String> {
        let (_, rest) = xml.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0.trim().to_owned())
    };
    let found = || {
        Some(Credentials {
            access_key: member("AccessKeyId")?,
            secret_key: member("SecretAccessKey")?,
            session_token: Some(member("SessionToken")?),
        })
    };
    found().ok_or_else(|| "the reply of AWS STS holds no credentials".to_owned())
}

/// The `[default]` section of a credentials file, or its only one.
fn parse_file(text: &str) -> Result<Credentials, String> {
    let mut sections: Vec<(&str, [Option<&str>; 3])> = vec![("default", [None; 3])];
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            sections.push((name.trim(), [None; 3]));
        } else if let Some((key, value)) = line.split_once('=')
            && let Some((_, slots)) = sections.last_mut()
        {
            let place = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
                .iter()
                .position(|name| name.eq_ignore_ascii_case(key.trim()));
            if let Some(place) = place {
                slots[place] = Some(value.trim());
            }
        }
    }
    let whole = |slots: &[Option<&str>; 3]| {
        Some(Credentials {
            access_key: slots[0]?.to_owned(),
            secret_key: slots[1]?.to_owned(),
            session_token: slots[2].map(str::to_owned),
        })
    };
    let named = sections.iter().filter(|(name, _)| *name == "default").find_map(|(_, slots)| whole(slots));
    named
        .or_else(|| sections.iter().find_map(|(_, slots)| whole(slots)))
        .ok_or_else(|| "credentialsFile holds no aws_access_key_id and aws_secret_access_key".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn credentials_files_are_read_as_aws_writes_them() {
        let text = "# comment\n[other]\naws_access_key_id = B\naws_secret_access_key = c\n[default]\nregion = x\naws_access_key_id=A\naws_secret_access_key = s/=k\naws_session_token = t\n";
        let read = parse_file(text).unwrap();
        assert_eq!((read.access_key.as_str(), read.secret_key.as_str()), ("A", "s/=k"));
        assert_eq!(read.session_token.as_deref(), Some("t"));
        assert_eq!(parse_file("[other]\naws_access_key_id = B\naws_secret_access_key = c").unwrap().access_key, "B");
        assert!(parse_file("[default]\naws_access_key_id = B").err().unwrap().contains("credentialsFile"));
    }

    #[test]
    fn a_role_taken_by_web_identity_is_read() {
        let xml = "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult><Credentials><SessionToken>tok</SessionToken><SecretAccessKey>sec</SecretAccessKey><Expiration>2026-11-25T00:00:00Z</Expiration><AccessKeyId>ASIA</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
        let read = parse_sts(xml).unwrap();
        assert_eq!((read.access_key.as_str(), read.secret_key.as_str()), ("ASIA", "sec"));
        assert!(parse_sts("<Error/>").is_err());
    }
}
