//! Loading: where a model's files lie, whether they are the right ones, and what they say.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationParams};

use super::ModelId;
use super::weights::{BertConfig, Weights};
use crate::config;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has the sha256 {found}, but embed.sha256 is {wanted}")]
    Checksum { path: PathBuf, found: String, wanted: String },
    #[error("the model {model} is in none of its places: {tried}")]
    NotFound { model: String, tried: String },
    #[error("{path}: {reason}")]
    Format { path: PathBuf, reason: String },
    #[error("the device {device}: {reason}")]
    Device { device: String, reason: String },
    #[error("a text cannot be tokenised: {0}")]
    Tokenize(String),
    #[error("the model failed: {0}")]
    Model(#[from] candle_core::Error),
}

/// The three files of a model.
pub(super) struct Files {
    config: PathBuf,
    tokenizer: PathBuf,
    weights: PathBuf,
}

impl Files {
    fn in_folder(folder: &Path) -> Option<Files> {
        let file = |name| Some(folder.join(name)).filter(|p: &PathBuf| p.is_file());
        Some(Files {
            config: file("config.json")?,
            tokenizer: file("tokenizer.json")?,
            weights: file("model.safetensors")?,
        })
    }
}

/// Where the model lies on this machine: the configured folder first, then the one that `scripts/model.sh` fills. Otherwise where it was looked
/// for. A configured folder that is there has to be the model's.
pub(super) fn local(config: &config::Embed) -> Result<Result<Files, Vec<String>>, Error> {
    let mut tried = Vec::new();
    let short = config.model.rsplit('/').next().unwrap_or(&config.model);
    let usual = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/freshet/models").join(short));
    for folder in config.path.iter().chain(&usual) {
        match Files::in_folder(folder) {
            Some(files) => return Ok(Ok(files)),
            None if config.path.as_ref() == Some(folder) && folder.exists() => {
                let reason = "is no folder with config.json, tokenizer.json and model.safetensors".into();
                return Err(Error::Format { path: folder.clone(), reason });
            }
            None => tried.push(format!("{} (scripts/model.sh puts it there)", folder.display())),
        }
    }
    Ok(Err(tried))
}

/// On this machine, or else from the Hugging Face hub.
pub(super) fn find(config: &config::Embed) -> Result<Files, Error> {
    let mut tried = match local(config)? {
        Ok(files) => return Ok(files),
        Err(tried) => tried,
    };
    let hub = hf_hub::api::sync::Api::new().map(|api| api.model(config.model.clone()));
    let fetched = hub.and_then(|repo| {
        Ok(Files {
            config: repo.get("config.json")?,
            tokenizer: repo.get("tokenizer.json")?,
            weights: repo.get("model.safetensors")?,
        })
    });
    fetched.map_err(|e| {
        tried.push(format!("the Hugging Face hub ({e})"));
        Error::NotFound { model: config.model.clone(), tried: tried.join(", ") }
    })
}

/// The files' contents, if they are of the model that is configured.
pub(super) struct Verified {
    bert: BertConfig,
    tokenizer: Tokenizer,
    weights: Vec<u8>,
    id: ModelId,
}

pub(super) fn verify(files: &Files, config: &config::Embed) -> Result<Verified, Error> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source });
    let format = |path: &Path, reason: String| Error::Format { path: path.into(), reason };
    let (config_bytes, tokenizer_bytes, weights) =
        (read(&files.config)?, read(&files.tokenizer)?, read(&files.weights)?);
    let found = hex(&Sha256::digest(&weights));
    if let Some(wanted) = config.sha256.as_ref().filter(|w| **w != found) {
        return Err(Error::Checksum { path: files.weights.clone(), found, wanted: wanted.clone() });
    }
    let bert: BertConfig = serde_json::from_slice(&config_bytes).map_err(|e| format(&files.config, e.to_string()))?;
    let absolute = bert.position_embedding_type.as_deref().is_none_or(|t| t == "absolute");
    if bert.model_type != "bert" || !absolute {
        return Err(format(
            &files.config,
            format!("a {} model is not of the BERT family with absolute positions", bert.model_type),
        ));
    }
    if config.text_max_tokens > bert.max_position_embeddings {
        let reason = format!(
            "it has {} positions, fewer than embed.text_max_tokens ({})",
            bert.max_position_embeddings, config.text_max_tokens
        );
        return Err(format(&files.config, reason));
    }
    let mut tokenizer = Tokenizer::from_bytes(&tokenizer_bytes).map_err(|e| format(&files.tokenizer, e.to_string()))?;
    let known = tokenizer.get_vocab_size(true);
    if known > bert.vocab_size {
        let reason = format!("it knows {known} tokens, more than the {} that the model has", bert.vocab_size);
        return Err(format(&files.tokenizer, reason));
    }
    // What the file says of padding and truncation is its author's taste; ours is to count the configured tokens and to pad nothing here.
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: config.text_max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| format(&files.tokenizer, e.to_string()))?;
    let mut id = Sha256::new();
    for part in [
        &found.as_bytes().to_vec(),
        &Sha256::digest(&tokenizer_bytes).to_vec(),
        &Sha256::digest(&config_bytes).to_vec(),
    ] {
        id.update(part);
    }
    id.update(config.text_max_tokens.to_le_bytes());
    Ok(Verified { bert, tokenizer, weights, id: ModelId(hex(&id.finalize())) })
}

pub(super) fn open(
    files: &Files,
    config: &config::Embed,
    device: &Device,
) -> Result<(Weights, Tokenizer, ModelId), Error> {
    let Verified { bert, tokenizer, weights, id } = verify(files, config)?;
    let vb = VarBuilder::from_buffered_safetensors(weights, DType::F32, device)?;
    let format = |e: candle_core::Error| Error::Format { path: files.weights.clone(), reason: e.to_string() };
    Ok((Weights::read(&bert, vb).map_err(format)?, tokenizer, id))
}

/// The licence that the model card beside the weights states (`license:` in its front matter).
pub(super) fn licence(files: &Files) -> Option<String> {
    let card = std::fs::read_to_string(files.weights.with_file_name("README.md")).ok()?;
    let front = card.strip_prefix("---")?.split("\n---").next()?;
    front.lines().find_map(|line| line.strip_prefix("license:")).map(|name| name.trim().to_string())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
