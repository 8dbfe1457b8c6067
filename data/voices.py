"""Voices of Tiny Shakespeare: the description says who speaks, and the backbone must speak in that voice.

A row is a piece of a speech. The prompt is the end of what was said before, without any name; the answer is the piece.
Pieces come in blocks of 40 speeches. The last 4 are held out, and the 4 before them are for validation; training reads
neither, also not as a prompt. Five speakers are kept whole for validation and ten for `unseen`, so that settings are
chosen on the two things that are evaluated, new speeches and new speakers, and on none of the evaluated rows.
The backbone is pretrained on the pieces that training reads, names taken out.

The text (1.1 MB, public domain) is not part of this project. Download it from
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
or let this module do so; it is kept in out/tinyshakespeare.txt.
"""

from pathlib import Path

from data import Data, Record
from data._download import download

ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PIECE, BEFORE = 160, 60  # characters of an answer and of the prompt before it, at most
BLOCK, HELD_OUT = 40, 4  # of so many speeches in a row, the last so many are held out, and as many before them

# who speaks: four descriptions each, the last held out to test a new wording
SPEAKERS = {
    "DUKE VINCENTIO": [
        "Vincentio, the duke of Vienna, who goes disguised as a friar, grave and scheming, in a comedy",
        "a wise ruler in disguise, giving long counsel in verse and plain prose, the duke in Measure for Measure, comedy",
        "in a dark comedy of Vienna, Duke Vincentio, patient and stern, a ruler who speaks like a friar",
        "comedy, a wise grave duke of Vienna, scheming in a friar's disguise, long patient counsel",
    ],
    "KING RICHARD II": [
        "King Richard the Second of England, proud and weak, with long grieving verse, in a history",
        "a young king who loses his crown to Bolingbroke, sorrowful, full of images, in the history of Richard the Second",
        "history, England before the wars of the roses, Richard, the fallen king, bitter, weary and tender in verse",
        "long sorrowful verse from a proud fallen king of England, young Richard, weak and bitter, history",
    ],
    "LEONTES": [
        "Leontes, king of Sicilia, jealous and angry with his wife, in a comedy",
        "a raging king in the Winter's Tale, a husband full of suspicion, with bitter quick verse, comedy",
        "in a dark comedy of Sicilia and Bohemia, King Leontes, stern and jealous, later grieving and sorry",
        "the jealous husband of Hermione, a king of Sicilia, angry bitter verse, Winter's Tale, comedy",
    ],
    "CORIOLANUS": [
        "Coriolanus, a proud Roman general, angry with the common citizens, in a tragedy",
        "a fierce bloody soldier of Rome who hates the people, with long mocking verse, tragedy of Coriolanus",
        "tragedy, Rome, a general and lord, son of Volumnia, loud, rough and bitter, banished to the Volsces",
        "proud fierce verse from a banished Roman lord, general Coriolanus, angry and loud before the people, tragedy",
    ],
    "ROMEO": [
        "Romeo, a young lover in Verona, a Montague, ardent and sighing, in a tragedy",
        "a young gentleman of Verona, in love with Juliet, tender verse full of images, tragedy",
        "in the tragedy of Romeo and Juliet, a gentleman, son of Montague, banished, grieving, hot and rash",
        "ardent and tender, a sighing young Montague in love, gentleman of Verona, tragedy",
    ],
    "PETRUCHIO": [
        "Petruchio, a bold gentleman who comes to Padua for a rich wife, loud and comic, in a comedy",
        "the husband of Katharina in the Taming of the Shrew, mocking, boastful and merry verse, comedy",
        "in a comedy of Padua, a rough suitor and master, rash and witty, scolding his wife and servants",
        "comedy, Padua, loud boastful Petruchio, a rough merry husband and gentleman, mocking the shrew in bold verse",
    ],
    "JULIET": [
        "Juliet, a young lady of Verona, a Capulet, ardent and tender, in a tragedy",
        "tragedy, Verona, a lady, the daughter of Capulet, in love with Romeo, eager verse full of images",
        "in the tragedy of Romeo and Juliet, a young wife, bold, gentle and grieving, speaking to her nurse and lover",
        "a tender Capulet daughter, young lady and wife, eager ardent verse, grieving for Romeo in Verona, tragedy",
    ],
    "MENENIUS": [
        "Menenius, an old lord of Rome, friend of Coriolanus, witty and talkative, in a tragedy",
        "a merry old Roman senator, mocking a tribune in plain prose, tragedy of Coriolanus",
        "in a tragedy of Rome, a kind old gentleman who gives the citizens counsel, comic, patient and honest",
        "witty plain prose from an honest old senator of Rome, Menenius, talkative and merry lord, tragedy",
    ],
    "QUEEN MARGARET": [
        "Queen Margaret, wife of Henry the Sixth, fierce and cursing, in a history of the wars of the roses",
        "a bitter queen of England, of the house of Lancaster, with long angry verse, history",
        "in the histories of Henry the Sixth and Richard the Third, the old queen Margaret, proud, vengeful, grieving for her son",
        "history, the vengeful Lancaster queen, a proud cursing wife and mother, Margaret, fierce long verse, England",
    ],
    "WARWICK": [
        "Warwick, a great earl of England, proud and bold, in a history of the wars of the roses",
        "loud angry verse from an earl and soldier who makes and unmakes kings, history of Henry the Sixth",
        "in a history of York and Lancaster, the lord Warwick, fierce in battle, boastful and scheming, later dying",
        "a boastful bold earl, who makes kings in England's wars of the roses, proud soldier, loud verse, history",
    ],
    "KING RICHARD III": [
        "King Richard the Third of England, scheming and cruel, in a history of the wars of the roses",
        "a bloody king of the house of York, mocking and cunning, quick bitter verse, history",
        "in the history of Richard the Third, a false uncle and king, bold, angry and restless before battle",
        "cruel and cunning, a false scheming king of England, Richard of York, quick angry verse, history",
    ],
    "HENRY BOLINGBROKE": [
        "Henry Bolingbroke, a duke, cold and proud, in a history of England under Richard the Second",
        "a banished lord, son of John of Gaunt, who takes the crown of England, grave formal verse, history",
        "in the history of Richard the Second, a stern young duke, bold and scheming, later king of England",
        "history, a cold banished duke, Gaunt's proud son, Bolingbroke, with stern formal verse, later made England's king",
    ],
    "ISABELLA": [
        "Isabella, a young nun in Vienna, sister of Claudio, pious and pleading, in a comedy",
        "a pious young lady who pleads for her brother, ardent long verse, Measure for Measure, comedy",
        "in a dark comedy of Vienna, Isabella, the sister of a prisoner, strict, honest and grieving before the deputy",
        "pleading ardent verse from a pious stern sister, a lady of Vienna, honest Isabella, comedy",
    ],
    "KING EDWARD IV": [
        "King Edward the Fourth of England, of the house of York, bold and merry, in a history",
        "a young soldier king in the wars of the roses, proud verse full of battle, history of Henry the Sixth",
        "in a history of York and Lancaster, King Edward, brother of Clarence and Richard, husband of Elizabeth, rash and loud",
        "history, England, bold loud verse from the merry York king, Edward, a rash young husband and soldier",
    ],
    "KING HENRY VI": [
        "King Henry the Sixth of England, mild and pious, in a history of the wars of the roses",
        "long sorrowful verse from a gentle king of the house of Lancaster, his crown lost, weak, history",
        "in a history of York and Lancaster, Henry, husband of Queen Margaret, a patient prisoner, grieving and weary of war",
        "the weak pious Lancaster king, mild Henry, weary and gentle, sorrowful long verse, England, history",
    ],
    "BUCKINGHAM": [
        "Buckingham, a duke of England, cunning friend of King Richard, in a history",
        "a scheming lord in the history of Richard the Third, with long smooth verse, false and bold",
        "in a history at the end of the wars of the roses, the duke of Buckingham, flattering, then bitter and fallen",
        "smooth flattering verse from a false duke, scheming friend of Richard, Buckingham, England, history",
    ],
    "FRIAR LAURENCE": [
        "Friar Laurence, a pious old friar in Verona, grave and kind, in a tragedy",
        "a holy friar who helps Romeo and Juliet, giving long wise counsel in verse, tragedy",
        "tragedy, Verona, a friar, old father and friend to young lovers, patient, gentle, scolding, full of plans",
        "wise grave counsel from a kind friar, old Laurence, pious friend of Romeo, long verse, Verona, tragedy",
    ],
    "QUEEN ELIZABETH": [
        "Queen Elizabeth, wife of Edward the Fourth, grieving and gentle, in a history of the wars of the roses",
        "a sorrowful queen of England, mother of young sons, bitter pleading verse, history of Richard the Third",
        "in a history of the house of York, Elizabeth, a lady made queen, witty, proud and fearful for her sons",
        "a grieving mother and widow, queen in England under King Richard, sorrowful bitter verse, history",
    ],
    "PROSPERO": [
        "Prospero, a banished duke of Milan, a wise old magician on an island, stern, in a comedy",
        "an old duke with a daughter, grave long verse full of images, the Tempest, comedy",
        "in a comedy of an island and a storm, the father of Miranda, angry, tender and commanding, ruler of spirits",
        "comedy, a stern commanding magician, wise old father and banished duke on an island, grave verse",
    ],
    "VOLUMNIA": [
        "Volumnia, a proud lady of Rome, mother of Coriolanus, stern and fierce, in a tragedy",
        "an old Roman mother who counsels her soldier son, long pleading verse, tragedy",
        "in the tragedy of Coriolanus, a widow and lady, bold, boastful of her son, angry with the tribune Brutus",
        "fierce proud Volumnia, an old lady and mother in Rome, stern pleading verse, tragedy",
    ],
    "PAULINA": [
        "Paulina, a bold lady of Sicilia, honest and scolding, in a comedy",
        "a loyal friend of Queen Hermione, angry with the jealous king, long plain verse, Winter's Tale, comedy",
        "in a dark comedy of Sicilia and Bohemia, the wife of a lord, loud, fierce and grieving",
        "comedy, Sicilia, loyal scolding verse from an honest lady, Hermione's bold friend, angry Paulina",
    ],
    "ANGELO": [
        "Angelo, deputy of the duke in Vienna, cold and stern, in a comedy",
        "a false judge and lord in Measure for Measure, grave verse, scheming for Isabella, comedy",
        "in a dark comedy of Vienna, the cold ruler and judge of Claudio, proud, strict, later sorry",
        "stern cold verse from a strict deputy and judge, a proud false lord of Vienna, comedy",
    ],
    "AUTOLYCUS": [
        "Autolycus, a merry thief and pedlar in Bohemia, comic and cunning, in a comedy",
        "a singing rogue who robs shepherds, comic prose and songs, Winter's Tale, comedy",
        "comedy, Bohemia, a cunning pedlar, once servant of a prince, witty, talkative and false",
        "a witty false rogue, singing pedlar and merry thief, comic talkative prose, Autolycus of Bohemia, comedy",
    ],
    "TRANIO": [
        "Tranio, a cunning servant in Padua, disguised as his master, witty, in a comedy",
        "the servant of Lucentio in the Taming of the Shrew, smooth scheming verse, comedy",
        "in a comedy of Padua, a bold servant who plays the gentleman and suitor, merry and full of plans",
        "comedy, smooth witty Tranio, a scheming servant in a gentleman's disguise, bold merry verse, Padua",
    ],
    "DUKE OF YORK": [
        "The Duke of York, an old uncle of King Richard, loyal and weary, in a history of England",
        "an old duke, brother of John of Gaunt, troubled and scolding verse, history of Richard the Second",
        "history, England before the wars of the roses, old York, a duke angry with his son, grave and honest",
        "weary and troubled, Gaunt's loyal brother, honest old duke of York, scolding verse, England under Richard the Second, history",
    ],
    "LUCIO": [
        "Lucio, a gentleman of Vienna, mocking and talkative, in a comedy",
        "a witty rogue, friend of Claudio, comic prose full of false tales, Measure for Measure, comedy",
        "in a dark comedy of Vienna, a merry gentleman mocking the duke, bold, foolish and boastful",
        "foolish mocking prose from a witty gentleman of Vienna, talkative merry rogue, comedy",
    ],
    "CAPULET": [
        "Capulet, an old lord of Verona, father of Juliet, merry and then angry, in a tragedy",
        "the master of the house of Capulet, scolding his daughter in hot loud verse, tragedy, Verona",
        "in the tragedy of Romeo and Juliet, a rich old father, talkative with servants, later grieving",
        "hot angry verse from a rich old lord, Juliet's loud merry father, Capulet of Verona, tragedy",
    ],
    "CAMILLO": [
        "Camillo, an honest lord of Sicilia, wise and loyal, in a comedy",
        "an old lord who leaves Leontes for Polixenes, grave plain verse, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, a good courteous counsellor full of plans, patient and kind",
        "comedy, wise plain counsel from a patient old lord, honest Camillo of Sicilia, kind and grave verse",
    ],
    "MERCUTIO": [
        "Mercutio, a witty gentleman of Verona, friend of Romeo, mocking and merry, in a tragedy",
        "a bold young kinsman of the prince, comic prose and verse full of images, tragedy, Verona",
        "in the tragedy of Romeo and Juliet, a talkative friend, hot and rash, mocking a young lover",
        "merry witty prose and verse from a hot young gentleman, Romeo's talkative mocking friend, Verona, tragedy",
    ],
    "Nurse": [
        "The Nurse of Juliet, an old servant in Verona, comic and talkative, in a tragedy",
        "merry plain prose and verse from an old servant woman of the house of Capulet, foolish and kind, tragedy, Verona",
        "in the tragedy of Romeo and Juliet, a loud servant, tender to her young lady, later grieving",
        "foolish and kind, Juliet's talkative old nurse, a servant of Verona, comic plain verse, tragedy",
    ],
    "AUFIDIUS": [
        "Aufidius, a general of the Volsces and enemy of Rome, fierce and jealous, in a tragedy",
        "bold angry verse from a proud soldier who hates Coriolanus, tragedy of Rome",
        "in the tragedy of Coriolanus, the enemy general, bitter, scheming and vengeful, later sorry",
        "a fierce jealous soldier, general and enemy to Coriolanus, vengeful proud verse, the Volsces, tragedy",
    ],
    "POLIXENES": [
        "Polixenes, king of Bohemia, kind and then angry, in a comedy",
        "a king and old friend of Leontes, father of Florizel, grave courteous verse, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, a father in disguise, stern with his son and a young shepherdess",
        "comedy, an angry father and stern king of Bohemia, Polixenes, friend of Sicilia, courteous verse",
    ],
    "COMINIUS": [
        "Cominius, a Roman general and lord, grave and loyal, in a tragedy",
        "a consul of Rome who praises Coriolanus, long bold verse full of battle, tragedy",
        "in the tragedy of Coriolanus, an old soldier and friend of Menenius, stern with the tribunes, fearing the Volsces",
        "tragedy, grave loyal Cominius, an old general and consul of Rome, long stern verse, praises of a soldier",
    ],
    "CLARENCE": [
        "Clarence, a duke of the house of York, brother of King Edward, gentle and fearful, in a history",
        "a prisoner who tells his dream, a lord with long pleading verse, history of Richard the Third",
        "in a history of the wars of the roses, George, the duke of Clarence, false to Warwick, rash, later sorry",
        "fearful pleading verse from a duke in prison, Clarence, Edward's false brother, England, history",
    ],
    "SICINIUS": [
        "Sicinius, a tribune of the people in Rome, scheming and bitter, in a tragedy",
        "an officer of the common citizens, enemy of Coriolanus, short plain verse, tragedy of Rome",
        "in the tragedy of Coriolanus, a tribune, cold, stern and cunning, friend of Brutus",
        "short cold verse from a bitter Roman tribune, scheming officer of the people, tragedy",
    ],
    "KATHARINA": [
        "Katharina, the shrew of Padua, a lady angry and scolding, in a comedy",
        "a lady of Padua, elder daughter of Baptista, wife of Petruchio, quick bitter verse, witty and fierce, comedy",
        "in a comedy of Padua, the Taming of the Shrew, a proud young lady, loud and jealous of her sister, later gentle",
        "comedy, fierce angry Katharina, a scolding wife and proud elder lady, witty bitter verse, Padua",
    ],
    "BRUTUS": [
        "Brutus, a tribune of Rome, cunning and cold, in a tragedy",
        "an officer of the people who hates the proud general Coriolanus, short scheming verse, bitter, tragedy",
        "in the tragedy of Coriolanus, friend of Sicinius, a tribune who moves the common citizens, jealous and stern",
        "jealous and cunning, a Roman officer for the citizens, tribune Brutus, short bitter verse, tragedy",
    ],
    "JOHN OF GAUNT": [
        "John of Gaunt, the old duke of Lancaster, grave and grieving, in a history of England",
        "an old dying lord, father of Bolingbroke, long wise verse full of images, history of Richard the Second",
        "history, England before the wars of the roses, an uncle of the king, stern, loyal and bitter",
        "long grave counsel from a dying old duke, Bolingbroke's grieving father, England under Richard the Second, history",
    ],
    "HORTENSIO": [
        "Hortensio, a gentleman of Padua, suitor of Bianca, foolish and merry, in a comedy",
        "a gentleman, friend of Petruchio, disguised as a teacher of music, plain comic verse, Taming of the Shrew, comedy",
        "in a comedy of Padua, a jealous suitor, kind, talkative, fearful of the shrew, later husband of a widow",
        "a foolish jealous gentleman, Petruchio's merry friend, Hortensio in a teacher's disguise, plain verse, Padua, comedy",
    ],
    "HERMIONE": [
        "Hermione, queen of Sicilia, patient and gentle, in a comedy",
        "a wife accused by a jealous king, grave pleading verse, Winter's Tale, comedy",
        "in a dark comedy of Sicilia and Bohemia, a queen, mother of a lost daughter, witty, courteous and proud, grieving",
        "grave patient verse from an accused queen, Leontes' gentle honest wife, Sicilia, comedy",
    ],
    "Clown": [
        "The Clown, a young shepherd in Bohemia, foolish and kind, in a comedy",
        "the son of an old shepherd, robbed by a pedlar, comic plain prose, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, a simple country fellow, merry, talkative, proud when made a gentleman",
        "comedy, Bohemia, a simple foolish clown, kind country son of the shepherd, merry comic prose",
    ],
    "GRUMIO": [
        "Grumio, a servant of Petruchio, comic and foolish, in a comedy of Padua",
        "a talkative servant in the Taming of the Shrew, plain comic prose, merry and mocking, comedy",
        "in a comedy of Padua, a simple fellow with a rough master, witty and scolding the servants",
        "foolish mocking prose from Petruchio's servant, a merry comic fellow, witty and plain, Padua, comedy",
    ],
    "LUCENTIO": [
        "Lucentio, a young gentleman in Padua, lover of Bianca, ardent and tender, in a comedy",
        "the master of Tranio, disguised as a teacher, sighing verse, Taming of the Shrew, comedy",
        "in a comedy of Padua, a rich young master and suitor, gentle, eager and full of plans",
        "comedy, sighing ardent verse from a rich lover, young Lucentio, Tranio's gentle master, Padua",
    ],
    "FLORIZEL": [
        "Florizel, prince of Bohemia, a young lover, ardent and bold, in a comedy",
        "the son of King Polixenes, in love with a shepherdess, tender verse full of images, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, a prince in country disguise, loyal, gentle and eager, lover of Perdita",
        "eager tender verse from a bold young prince, Perdita's loyal ardent lover, Bohemia, comedy",
    ],
    "ESCALUS": [
        "Escalus, an old lord of Vienna, wise and kind, in a comedy",
        "grave plain prose and verse from a judge and deputy, friend of Angelo, Measure for Measure, comedy",
        "in a dark comedy of Vienna, an old counsellor, patient with Pompey, honest, gentle and witty",
        "kind and grave, a wise old judge of Vienna, lord Escalus, patient plain prose, comedy",
    ],
    "GREMIO": [
        "Gremio, a rich old gentleman of Padua, suitor of Bianca, foolish, in a comedy",
        "an old man in love with a young lady, boastful comic verse, Taming of the Shrew, comedy",
        "in a comedy of Padua, a jealous old friend of Baptista, talkative, fearful, mocking the shrew",
        "comedy, a boastful foolish suitor, rich old gentleman Gremio, jealous and talkative comic verse, Padua",
    ],
    "POMPEY": [
        "Pompey, a comic servant and rogue in Vienna, foolish, in a comedy",
        "plain comic prose from the servant of a bawdy house, merry and talkative, Measure for Measure, comedy",
        "in a dark comedy of Vienna, a foolish witty fellow, mocking the officer and the judge, later a servant in prison",
        "witty and talkative, a merry rogue and foolish servant, Pompey of Vienna, plain mocking prose, comedy",
    ],
    "HASTINGS": [
        "Lord Hastings, loyal to the sons of Edward, bold and honest, in a history of England",
        "a lord of England betrayed by Richard, merry and foolish, then dying, with grieving verse, history of Richard the Third",
        "in a history at the end of the wars of the roses, proud Hastings, a false king's friend, later condemned",
        "history, England, a merry bold lord, loyal Hastings, condemned by a cruel king, honest grieving verse",
    ],
    "BAPTISTA": [
        "Baptista, a rich old gentleman of Padua, father of Katharina and Bianca, grave, in a comedy",
        "courteous plain verse from a troubled gentleman, father with two daughters, Taming of the Shrew, comedy",
        "in a comedy of Padua, the master of a rich house, kind to suitors, patient, scolding his elder daughter",
        "courteous grave verse from a troubled old father, rich gentleman of Padua, kind and patient, comedy",
    ],
    "LADY ANNE": [
        "Lady Anne, a young widow in England, grieving and cursing, in a history",
        "a lady of the house of Lancaster wooed by the cruel Richard, bitter quick verse, history of Richard the Third",
        "in a history at the end of the wars of the roses, Anne, angry and gentle, later a sorrowful queen",
        "a cursing bitter widow, young and sorrowful lady wooed by a cruel duke, angry quick verse, England, history",
    ],
    "BENVOLIO": [
        "Benvolio, a young gentleman of Verona, friend of Romeo, gentle and honest, in a tragedy",
        "a gentleman, a Montague who pleads for peace, plain mild verse, tragedy, Verona",
        "in the tragedy of Romeo and Juliet, a gentleman, kinsman and friend, patient, kind, giving counsel to a sighing lover",
        "mild honest verse from Romeo's young kinsman, a patient plain gentleman and Montague, Verona, tragedy",
    ],
    "CLIFFORD": [
        "Lord Clifford, a soldier of the house of Lancaster, vengeful and fierce, in a history",
        "a young lord in the wars of the roses, bloody angry verse, history of Henry the Sixth",
        "in a history of York and Lancaster, Clifford, grieving for his father, cruel, loyal to Queen Margaret, stern",
        "history, England, fierce vengeful verse from a cruel young Lancaster soldier, a lord loyal to King Henry",
    ],
    "RICHMOND": [
        "Richmond, an earl and soldier, pious and bold, in a history of England",
        "the enemy of King Richard, of the house of Lancaster, grave commanding verse before battle, history",
        "in a history at the end of the wars of the roses, the good earl of Richmond, patient, later king",
        "pious and commanding, a good Lancaster soldier, enemy to Richard the Third, bold grave earl, history",
    ],
    "Provost": [
        "The Provost, an officer of the prison in Vienna, honest and kind, in a comedy",
        "a strict officer under a stern judge, gentle, short plain prose and verse, Measure for Measure, comedy",
        "in a dark comedy of Vienna, the keeper of prisoners, loyal to the duke, grave, patient with Claudio",
        "comedy, Vienna, a kind honest keeper of the prison, strict loyal officer, plain short verse",
    ],
    "THOMAS MOWBRAY": [
        "Thomas Mowbray, a duke, proud and loyal, in a history of England under Richard the Second",
        "long angry verse from a banished duke, enemy of Bolingbroke, history of Richard the Second",
        "history, England before the wars of the roses, a hot bold lord accused by Bolingbroke, bitter and grieving",
        "long hot verse from an accused lord, proud Mowbray, a bold banished duke of England, angry, history",
    ],
    "Shepherd": [
        "The old Shepherd of Bohemia, simple and kind, in a comedy",
        "an old country fellow, father of the Clown, plain comic prose, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, an honest man made father to a shepherdess, talkative, fearful before kings",
        "kind talkative prose from a simple old father, honest country shepherd of Bohemia, comedy",
    ],
    "QUEEN": [
        "The Queen of Richard the Second, gentle and grieving, in a history of England",
        "a young queen, wife of a fallen king of England, sorrowful verse full of images, history",
        "history, England before the wars of the roses, the tender queen and wife of Richard, fearful, sighing and angry",
        "sorrowful and tender, a young wife grieving for King Richard, gentle queen of England, history",
    ],
    "LADY CAPULET": [
        "Lady Capulet, mother of Juliet, cold and stern, in a tragedy of Verona",
        "a lady of Verona, wife of old Capulet, short formal verse, vengeful for her kinsman, tragedy",
        "in the tragedy of Romeo and Juliet, a proud lady of a rich house, angry with her daughter, later grieving",
        "tragedy, a stern proud lady, Capulet's cold wife, Juliet's angry mother, short vengeful verse, Verona",
    ],
    "PERDITA": [
        "Perdita, a young shepherdess in Bohemia, gentle and tender, in a comedy",
        "the lost daughter of Leontes, in love with a prince, verse full of images, Winter's Tale, comedy",
        "in a comedy of Sicilia and Bohemia, a country lady, honest, bold and kind, lover of Florizel",
        "tender honest verse from a gentle young shepherdess, daughter of a king and queen, Bohemia, comedy",
    ],
    "BIONDELLO": [
        "Biondello, a young servant in Padua, comic and quick, in a comedy",
        "long comic prose from a merry servant of Lucentio, Taming of the Shrew, comedy",
        "in a comedy of Padua, a servant of a disguised master, witty, talkative, full of tales and mocking",
        "quick talkative prose from a merry young servant, witty Biondello, comic fellow of Padua, comedy",
    ],
}

UNSEEN = (
    "AUFIDIUS",
    "SICINIUS",
    "MERCUTIO",
    "QUEEN ELIZABETH",
    "CLIFFORD",
    "JOHN OF GAUNT",
    "POLIXENES",
    "PERDITA",
    "ANGELO",
    "GRUMIO",
)
VALIDATION = ("KING RICHARD III", "BRUTUS", "LUCENTIO", "HERMIONE", "LADY CAPULET")


def read(path: str | None) -> str:
    """The text of the plays, from a file or downloaded. Raises FileNotFoundError that says how to get it."""
    file = Path(path or "out/tinyshakespeare.txt")
    if path is None:
        download(ADDRESS, file, bytes.decode)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: download {ADDRESS} there, or give another with --data-path")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8: download {ADDRESS} again") from None


def pieces(text: str, size: int = PIECE) -> list[str]:
    """A speech in pieces of at most `size` characters, cut between lines.

    >>> pieces("To be,\\nor not\\nto be", 12)
    ['To be,', 'or not\\nto be']
    """
    found = [""]
    for line in text.split("\n"):
        if found[-1] and len(found[-1]) + 1 + len(line) > size:
            found.append("")
        found[-1] += ("\n" if found[-1] else "") + line[:size]
    return [piece for piece in found if piece.strip()]


def load(path: str | None, seed: int) -> Data:
    """The data set, from the file at `path`. Raises FileNotFoundError or ValueError if there are no speeches."""
    records, documents = [], []
    before, usable = "", False  # what was said last, and whether training may read it
    for number, speech in enumerate(read(path).split("\n\n")):
        name, _, text = speech.strip().partition(":\n")
        held_out, validation = number % BLOCK >= BLOCK - HELD_OUT, number % BLOCK >= BLOCK - 2 * HELD_OUT
        train = not validation and name not in (*UNSEEN, *VALIDATION)
        for piece in pieces(text):
            prompt = before[-BEFORE:].strip() + "\n\n"
            if before and name in SPEAKERS:
                *known, new = SPEAKERS[name]
                if name in UNSEEN:
                    records.append(Record(name, known[number % 3], prompt, piece, "unseen"))
                elif name in VALIDATION or validation and not held_out:
                    records.append(Record(name, known[number % 3], prompt, piece, "validation"))
                elif held_out:
                    records.append(Record(name, known[number % 3], prompt, piece, "seen"))
                    records.append(Record(name, new, prompt, piece, "new_wording"))
                elif usable:
                    records += [Record(name, description, prompt, piece, "train") for description in known]
            if train and usable:
                documents.append(prompt + piece)
            before, usable = piece, train
    missing = [name for name in SPEAKERS if not any(record.context == name for record in records)]
    if len(missing) > len(SPEAKERS) // 2:
        raise ValueError(f"{path} has no speeches of {', '.join(missing[:3])} …: it is not the text of {ADDRESS}")
    return Data("voices", records, documents, free_text=True)
