//! `model_index.json`: the class of a pipeline and of its components.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{CheckpointError, Limits, Result, json};

/// One component that a pipeline names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// Its name and that of its directory, for example `unet`.
    pub name: String,
    /// The library or module that defines its class, for example `diffusers`. A name that is not a known library means code
    /// beside the checkpoint, which is never run here.
    pub library: String,
    /// Its class, for example `UNet2DModel`.
    pub class_name: String,
}

impl Component {
    /// Whether it is a text encoder or a tokenizer.
    pub(crate) fn is_text(&self) -> bool {
        self.name.starts_with("text_encoder") || self.name.starts_with("tokenizer")
    }
}

/// A parsed `model_index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineIndex {
    /// Class of the pipeline, for example `DDPMPipeline`.
    pub class_name: String,
    /// The components that are not null, sorted by name.
    pub components: Vec<Component>,
}

impl PipelineIndex {
    /// Reads a `model_index.json`.
    ///
    /// # Errors
    /// The file cannot be read as JSON within the limits, has no `_class_name`, or a component whose name is not that of a
    /// directory beside it.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        Self::from_map(path, json::read_json(path, limits)?)
    }

    /// Parses the bytes of a `model_index.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`PipelineIndex::read`], without those of the file system.
    pub fn parse(path: &Path, bytes: &[u8], limits: &Limits) -> Result<Self> {
        Self::from_map(path, json::parse_json(path, bytes, limits)?)
    }

    fn from_map(path: &Path, map: Map<String, Value>) -> Result<Self> {
        let bad_field = |field: &str, expected| CheckpointError::JsonField {
            path: path.into(),
            field: field.into(),
            expected,
        };
        // A pipeline with code of its own writes [module, class].
        let class_name = match map.get("_class_name") {
            Some(Value::String(class)) => class.clone(),
            Some(Value::Array(pair)) => match pair.as_slice() {
                [Value::String(_), Value::String(class)] => class.clone(),
                _ => return Err(bad_field("_class_name", "a class name")),
            },
            _ => return Err(bad_field("_class_name", "a class name")),
        };
        if !is_printable(&class_name) {
            return Err(bad_field(
                "_class_name",
                "a class name, without control characters",
            ));
        }
        let mut components = Vec::new();
        for (name, value) in map {
            // Other values than lists are options of the pipeline, such as `requires_safety_checker`.
            let (false, Value::Array(pair)) = (name.starts_with('_'), value) else {
                continue;
            };
            match pair.as_slice() {
                [Value::String(library), Value::String(class)] => {
                    if !is_printable(library) || !is_printable(class) {
                        return Err(bad_field(
                            &name,
                            "a library and a class, without control characters",
                        ));
                    }
                    if !is_plain_name(&name) {
                        return Err(bad_field(&name, "named as a directory beside the file"));
                    }
                    components.push(Component {
                        name,
                        library: library.clone(),
                        class_name: class.clone(),
                    });
                }
                // `[null, null]` is a component left out; a list of another form is an option.
                _ => continue,
            }
        }
        components.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            class_name,
            components,
        })
    }

    /// Whether the pipeline has a text encoder or a tokenizer.
    pub(crate) fn has_text_part(&self) -> bool {
        self.components.iter().any(Component::is_text)
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }
}

/// Component names are Python identifiers, so they cannot lead anywhere but to a directory beside the index.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// What is shown to a user must not steer his terminal.
fn is_printable(text: &str) -> bool {
    !text.contains(char::is_control)
}
