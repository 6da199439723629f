"""Griffe extension: the annotated fields of a transformers configuration are arguments of its `__init__`.

transformers makes configurations dataclasses when they are defined, which cannot be seen in the source.
"""

from griffe import Class, Extension, Function, Parameter, ParameterKind, Parameters


class ConfigurationFields(Extension):
    def on_class_members(self, *, cls: Class, **kwargs) -> None:
        if "PreTrainedConfig" not in map(str, cls.bases):
            return
        fields = [
            Parameter(name, annotation=member.annotation, kind=ParameterKind.keyword_only, default=member.value)
            for name, member in cls.attributes.items()
            if member.annotation is not None and "property" not in member.labels and not name.startswith("_")
        ]
        self_parameter = Parameter("self", kind=ParameterKind.positional_or_keyword)
        parameters = Parameters(self_parameter, *fields)
        cls.set_member("__init__", Function("__init__", parameters=parameters, returns="None"))
